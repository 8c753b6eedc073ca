"""Normalised cuts of a batch of patch graphs, jitted, for an accelerator.

The problem of `crate_jax.segmentation.ncut` in fixed shapes: a block of four vectors, cycles of
six block Krylov steps with a Rayleigh-Ritz step and a restart after each. A pass over the
affinity is bound by memory, so B is kept in bfloat16 (0 and 1 are exact) and a float32 vector is
split into three bfloat16 terms whose sum is exact: one matrix product with bfloat16 operands and
float32 accumulation gives B x to float32's rounding, on tensor cores or a TPU's matrix unit, and
nothing of B is ever converted to float32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, BFloat16, Bool, Float, Float32

from crate_jax.segmentation.ncut import EPS

_BLOCK = 4
_STEPS = 6  # block products per cycle: a basis of 28 columns, small enough for batched Jacobi
_MAX_CYCLES = 6
_VECTOR_TOLERANCE = 2e-4  # residual / eigengap; float32 rounding allows no less on most images
_VALUE_TOLERANCE = 5e-6  # likewise, error estimate of the third eigenvalue
_LEAST_GAP = 1e-4  # a smaller one is within reach of float32's rounding

SMALLEST = 64
"""Fewest patches for which the basis of a cycle fits; smaller graphs belong on the host."""


class Solved(NamedTuple):
    """Second eigenpair per image; see `ncut.Cut`.

    `accurate` is False where float32 cannot resolve the eigengap or the iteration did not
    converge (a degenerate graph included): the host has to decide.
    """

    eigenvalues: Float32[Array, "b 2"]
    vectors: Float32[Array, "b n"]
    accurate: Bool[Array, " b"]


@jax.jit
def affinity(
    features: Float[Array, "b n d"], tau: Float[ArrayLike, ""]
) -> tuple[BFloat16[Array, "b n n"], Bool[Array, " b"]]:
    """Return B = [cosine > tau] as bfloat16[b, n, n] and which images are finite, bool[b].

    Cosines in float32 at the highest precision: TF32 or bfloat16 would flip edges near tau.
    Image by image, so that one float32 matrix of cosines exists at a time.
    """

    def one(f):
        f = f.astype(jnp.float32)
        largest = jnp.max(jnp.abs(f), axis=1, keepdims=True)
        f = f / jnp.where(largest > 0, largest, 1)  # no square overflows
        norm = jnp.linalg.norm(f, axis=1, keepdims=True)
        unit = f / jnp.maximum(norm, jnp.where(largest > 0, 1e-12 / largest, 1))
        cosines = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
        return (cosines > tau).astype(jnp.bfloat16)

    finite = jnp.isfinite(features).all(axis=(1, 2))
    return jax.lax.map(one, jnp.where(finite[:, None, None], features, 0)), finite


@partial(jax.jit, static_argnames="remove")
def solve(
    edges: BFloat16[Array, "b n n"], painted: Bool[ArrayLike, "b n"], remove: bool = False
) -> Solved:
    """Solve one cut per image: B bf16[b, n, n], painted bool[b, n]; `remove` as in `Graph`."""
    return jax.vmap(partial(_solve_one, remove=remove))(edges, jnp.asarray(painted))


def _solve_one(edges, painted, remove):
    n = edges.shape[0]
    joined = (~painted).astype(jnp.float32)
    nodes = joined if remove else jnp.ones_like(joined)
    size = nodes.sum()

    def times_b(x):
        return joined[:, None] * _exact_product(edges, joined[:, None] * x)

    degrees = (1 - EPS) * times_b(jnp.ones((n, 1)))[:, 0] + EPS * size
    scale = nodes * jax.lax.rsqrt(degrees)
    trivial = nodes * jnp.sqrt(degrees)
    trivial = trivial / jnp.maximum(jnp.linalg.norm(trivial), 1e-30)

    def product(y):  # M y with M = D^-1/2 A D^-1/2
        x = scale[:, None] * y
        return scale[:, None] * ((1 - EPS) * times_b(x) + EPS * x.sum(axis=0, keepdims=True))

    def step(k, state):
        fresh, basis, images = state
        fresh = _orthonormal(fresh, jnp.concatenate([trivial[:, None], basis], axis=1))
        image = product(fresh)
        at = (0, (k + 1) * _BLOCK)
        basis = jax.lax.dynamic_update_slice(basis, fresh, at)
        return image, basis, jax.lax.dynamic_update_slice(images, image, at)

    def cycle(state):
        done, fresh, kept, kept_images, _, _ = state
        room = ((0, 0), (0, _STEPS * _BLOCK))
        basis, images = jnp.pad(kept, room), jnp.pad(kept_images, room)
        _, basis, images = jax.lax.fori_loop(0, _STEPS, step, (fresh, basis, images))
        projected = _matmul(basis.T, images)
        # An all-zero column (nothing new was left to add) must not pass for theta = 0.
        empty = jnp.sum(basis * basis, axis=0) < 0.5
        projected = (projected + projected.T) / 2 - 2 * jnp.diag(empty.astype(jnp.float32))
        theta, ritz = jnp.linalg.eigh(projected)
        theta, ritz = theta[::-1][:_BLOCK], ritz[:, ::-1][:, :_BLOCK]
        basis, images = _matmul(basis, ritz), _matmul(images, ritz)
        residuals = images - basis * theta[None]
        return done + 1, residuals, basis, images, theta, jnp.linalg.norm(residuals, axis=0)

    def accurate(theta, residual):
        gap = theta[0] - theta[1]
        # theta = -2 stands for an empty column: the space held fewer than three directions.
        vector = (residual[0] <= _VECTOR_TOLERANCE * gap) & (gap > _LEAST_GAP) & (theta[2] > -1)
        value = residual[1] ** 2 <= _VALUE_TOLERANCE * jnp.maximum(theta[1] - theta[2], residual[1])
        return vector & value

    start = jnp.concatenate([scale[:, None], jnp.asarray(_noise(n)) * nodes[:, None]], axis=1)
    # The first cycle has no kept Ritz vectors: zero columns, of which `empty` disposes.
    none = jnp.zeros((n, _BLOCK))
    state = (0, start, none, none, jnp.zeros(_BLOCK), jnp.full(_BLOCK, jnp.inf))
    state = jax.lax.while_loop(lambda s: (s[0] < _MAX_CYCLES) & ~accurate(s[4], s[5]), cycle, state)
    # One fresh product: the stored images carry the rounding of every restart.
    y = state[2][:, 0]
    y = y / jnp.linalg.norm(y)
    image = product(y[:, None])[:, 0]
    first = jnp.dot(y, image, precision="highest")
    theta = state[4].at[0].set(first)
    residual = state[5].at[0].set(jnp.linalg.norm(image - first * y))
    v = scale * y
    v = v * jnp.where(v[jnp.argmax(jnp.abs(v))] < 0, -1, 1)
    return Solved(1 - theta[:2], v, accurate(theta, residual))


def _exact_product(edges, x):
    """B x for B of zeros and ones in bfloat16 and x f32[n, k], to float32's rounding."""
    terms, rest = [], x
    for _ in range(3):  # 3 x 8 bits of mantissa
        terms.append(rest.astype(jnp.bfloat16))
        rest = rest - terms[-1].astype(jnp.float32)
    parts = jax.lax.dot_general(
        edges,
        jnp.concatenate(terms, axis=1),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    high, middle, low = jnp.split(parts, 3, axis=1)
    return high + (middle + low)


def _orthonormal(block, basis):
    """Orthonormalise the columns of `block` against `basis` and each other (SVQB, twice).

    The block is multiplied with the inverse square root of its Gram matrix, from a 4 x 4
    eigendecomposition: matrix products only, where QR would run column by column. Directions
    that the block does not really have become zero columns.
    """
    block = block / jnp.maximum(jnp.linalg.norm(block, axis=0, keepdims=True), 1e-30)
    for _ in range(2):
        block = block - _matmul(basis, _matmul(basis.T, block))
        length = jnp.linalg.norm(block, axis=0, keepdims=True)
        # What float32's rounding leaves of a vector in the span of the basis is no direction.
        block = jnp.where(length > 1e-5, block / jnp.maximum(length, 1e-30), 0)
        squared, axes = jnp.linalg.eigh(_matmul(block.T, block))
        inverse_root = jnp.where(squared > 1e-6, jax.lax.rsqrt(jnp.maximum(squared, 1e-30)), 0)
        block = _matmul(block, axes * inverse_root[None])
    return block


def _matmul(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _noise(n):
    return np.random.default_rng(0).standard_normal((n, _BLOCK - 1)).astype(np.float32)
