"""MSSA's attention as one kernel that reads w once, for TPU, in Pallas.

Query, key and value are one array, so that a head of an image, [tokens, d_head], lies in the chip's
fast memory once. A block of rows sees all columns: no running softmax is needed. The backward pass
keeps w alone, computes the maps P again, and adds what w receives in its three roles: with
dP = dO w^T and dS = P (dP - sum_j P dP) / sqrt(d_head), row by row,

    dw = P^T dO  (value)  +  dS w  (query)  +  dS^T w  (key).

Products take w's dtype and are summed in float32; softmax is float32. Elsewhere than on a TPU the
kernel is interpreted: the same numbers, slowly.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

Heads = Float[Array, "b tokens heads d_head"]
Subspaces = Float[Array, "b heads tokens d_head"]

ROWS = 128  # of the maps at a time
_ROW_BY_ROW = (((1,), (1,)), ((), ()))  # A B^T
_COLUMN_BY_COLUMN = (((0,), (0,)), ((), ()))  # A^T B
_PLAIN = (((1,), (0,)), ((), ()))


def attend(w: Heads) -> Heads:
    """softmax(w w^T / sqrt(d_head)) w per head; [b, tokens, heads, d_head], any tokens.

    Under a mesh of several devices (`jax.sharding.use_abstract_mesh`) each has its part of the
    batch: the compiler cannot split a kernel by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _attend_whole(w)
    split = PartitionSpec(mesh.axis_names)
    return jax.shard_map(_attend_whole, in_specs=split, out_specs=split, check_vma=False)(w)


def _attend_whole(w: Heads) -> Heads:
    tokens = w.shape[1]
    padded = jnp.pad(w, ((0, 0), (0, -tokens % ROWS), (0, 0), (0, 0)))
    out: Array = _attend(padded.swapaxes(1, 2), tokens)
    return out.swapaxes(1, 2)[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(w: Subspaces, tokens: int) -> Subspaces:
    return _call(functools.partial(_forward_kernel, tokens), w.dtype, w)


def _forward(w: Subspaces, tokens: int) -> tuple[Subspaces, Subspaces]:
    return _attend(w, tokens), w


def _backward(tokens: int, w: Subspaces, cotangent: Subspaces) -> tuple[Subspaces]:
    kernel = functools.partial(_backward_kernel, tokens)
    return (_call(kernel, jnp.float32, w, cotangent.astype(w.dtype)).astype(w.dtype),)


_attend.defvjp(_forward, _backward)


def _call(kernel, dtype, *arrays: Subspaces) -> Subspaces:
    """The kernel on every head of every image, block by block of its rows."""
    b, heads, tokens, head_dim = arrays[0].shape
    head = pl.BlockSpec((1, 1, tokens, head_dim), lambda image, head, _: (image, head, 0, 0))

    def run(*arrays, interpret):
        return pl.pallas_call(
            kernel,
            grid=(b, heads, tokens // ROWS),
            in_specs=[head] * len(arrays),
            out_specs=head,
            out_shape=jax.ShapeDtypeStruct(arrays[0].shape, dtype),
            interpret=interpret,
        )(*arrays)

    return jax.lax.platform_dependent(
        *arrays,
        tpu=functools.partial(run, interpret=False),
        default=functools.partial(run, interpret=True),
    )


def _product(a: Array, b: Array, dimensions=_PLAIN) -> Array:
    """In float32 to its full precision, in bfloat16 as the matrix unit does it."""
    exact = a.dtype == jnp.float32
    return jax.lax.dot_general(
        a,
        b,
        dimensions,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def _maps(rows: Array, w: Array, tokens: int) -> Array:
    """Rows of P in float32, nothing on the padding."""
    scores = _product(rows, w, _ROW_BY_ROW) / math.sqrt(w.shape[1])
    column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    scores = jnp.where(column < tokens, scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _rows():
    return pl.ds(pl.multiple_of(pl.program_id(2) * ROWS, ROWS), ROWS)


def _forward_kernel(tokens: int, w_ref, out_ref) -> None:
    rows = _rows()
    w = w_ref[0, 0]
    maps = _maps(w_ref[0, 0, rows], w, tokens).astype(w.dtype)
    out_ref[0, 0, rows] = _product(maps, w).astype(out_ref.dtype)


def _backward_kernel(tokens: int, w_ref, cotangent_ref, out_ref) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)

    rows = _rows()
    w, w_rows, cotangent = w_ref[0, 0], w_ref[0, 0, rows], cotangent_ref[0, 0, rows]
    maps = _maps(w_rows, w, tokens)
    of_maps = _product(cotangent, w, _ROW_BY_ROW)
    of_scores = maps * (of_maps - jnp.sum(maps * of_maps, axis=1, keepdims=True))
    of_scores = (of_scores / math.sqrt(w.shape[1])).astype(w.dtype)
    out_ref[0, 0] += _product(maps.astype(w.dtype), cotangent, _COLUMN_BY_COLUMN) + _product(
        of_scores, w_rows, _COLUMN_BY_COLUMN
    )
    out_ref[0, 0, rows] += _product(of_scores, w)
