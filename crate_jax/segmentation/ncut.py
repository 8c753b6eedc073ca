"""Normalised cut of a patch graph: the second eigenvector of (D - A) v = mu D v, on the host.

The graph (TokenCut, arXiv 2209.00383; MaskCut, arXiv 2301.11320): patches i and j with unit
features f_i, f_j are joined by

    A_ij = 1 if <f_i, f_j> > tau else eps,    eps = 1e-5,    D = diag(row sums of A).

With B = [cosine > tau], A = (1 - eps) B + eps 1 1^T, so a product with A costs one with the 0/1
matrix B and a sum. mu = 1 - theta and v = D^-1/2 y for the pairs (theta, y) of the symmetric
M = D^-1/2 A D^-1/2, whose largest pair (1, D^1/2 1) is known and projected out. What is left is
the largest eigenvalue of a deflated symmetric matrix: a block Krylov method finds it in a few
products, where the dense generalised solver reduces the whole matrix.

Painting patches (MaskCut's later rounds) only clears rows and columns of B, therefore B is
computed once per image. Its products are exact sums of float32 numbers; where the gap between
the second and the third eigenvalue is too small for that precision they are taken in float64,
and where the iteration does not converge the dense solver is called and reported.

`crate_jax.segmentation.ncut_device` holds the same method for batches on an accelerator.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy.linalg import blas, eigh
from threadpoolctl import ThreadpoolController

EPS = 1e-5
"""Weight of an absent edge; keeps every degree positive (TokenCut's constant)."""

VECTOR_TOLERANCE = 3e-5
"""Largest residual / eigengap, a bound on the angle (radians) to the exact eigenvector."""

VALUE_TOLERANCE = 5e-7
"""Largest error estimate of the third eigenvalue."""

AMBIGUOUS_GAP = 1e-6
"""mu_3 - mu_2 up to which the two eigenvectors count as interchangeable."""

_BLOCK = 2  # sees a double eigenvalue, and needs 40 % fewer products in total than a block of 4
_FIRST_CHECK = 10  # basis size; earlier a small residual may belong to the third eigenvector
_BASIS = 96  # columns kept before the basis is compressed to the leading Ritz vectors
_RESTART = 40  # many: components of a sparse graph crowd at mu = 0 and must all be kept
_MAX_PASSES = 120
_DENSE_BELOW = 100  # nodes; the whole basis would not fit in so small a space
_SINGLE_FLOOR = 3e-7  # residual that float32 products reach


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def single_threaded_blas():
    """A context of one BLAS thread: the products here are short and bound by memory.

    OpenBLAS's threads wait for each other in spin loops: beside another busy process they were
    measured 6 to 80 times slower than one.
    """
    return _blas().limit(limits=1, user_api="blas")


@dataclass(frozen=True)
class Cut:
    """Second and third eigenpair of one normalised cut.

    Attributes:
        eigenvalues: f64[2], mu_2 <= mu_3, in [0, 2].
        vector: f64[n], second eigenvector with v^T D v = 1 and its entry of largest magnitude
            positive; zero on patches outside the graph and where `degenerate`.
        degenerate: True where the graph singles out no vector at all (every pair joined, or
            none): any vector orthogonal to the trivial one is as good, so none is returned.
        dense: True where the iteration did not converge and the dense solver was used.
    """

    eigenvalues: Float64[np.ndarray, "2"]
    vector: Float[np.ndarray, " n"]
    degenerate: bool
    dense: bool

    @property
    def gap(self) -> float:
        """Eigengap mu_3 - mu_2: how clearly this cut is the best one."""
        return float(self.eigenvalues[1] - self.eigenvalues[0])


def unit_rows(features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Scale each row of f32[n, d] to length 1; shorter than 1e-12 is divided by 1e-12.

    The norm is taken in float64, so that no finite float32 row overflows. Zero rows stay zero.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    return features / np.maximum(norms, 1e-12).astype(np.float32)[:, None]


def affinity(
    features: Float32[np.ndarray, "n d"], tau: float, block: int = 256
) -> Float32[np.ndarray, "n n"]:
    """Return B = [cosine > tau] of f32[n, d] as float32 0/1, its upper triangle only.

    B is symmetric, so row block i is multiplied with the columns from i on: half the work, and
    the float32 cosines never exist as a whole. The lower triangle stays zero (and, the pages
    being untouched, takes no memory).
    """
    unit = unit_rows(features)
    n = len(unit)
    upper = np.zeros((n, n), np.float32)
    for i in range(0, n, block):
        upper[i : i + block, i:] = unit[i : i + block] @ unit[i:].T > tau
    return upper


class Graph:
    """Patch graph of one image after painting.

    Args:
        upper: f32[n, n], `affinity`'s upper triangle of B.
        painted: bool[n], patches whose features count as zero (no edges left).
        remove: False (MaskCut as published): painted patches stay in the graph and are joined
            to everything, each other included, with weight eps. True: they leave the graph.
    """

    def __init__(
        self,
        upper: Float32[np.ndarray, "n n"],
        painted: Bool[np.ndarray, " n"],
        remove: bool = False,
    ):
        self.lower = upper.T  # Fortran order: BLAS reads it without a copy
        self.edges = (~painted).astype(np.float64)
        self.nodes = self.edges if remove else np.ones_like(self.edges)
        self.size = int(self.nodes.sum())
        self.neighbours = np.rint(self._times_b(np.ones((1, len(painted))))[0])
        self.degrees = self.nodes * ((1 - EPS) * self.neighbours + EPS * self.size)
        self.scale = np.zeros_like(self.degrees)  # D^-1/2, zero outside the graph
        np.divide(1.0, np.sqrt(self.degrees), out=self.scale, where=self.nodes > 0)
        trivial = np.sqrt(self.degrees)
        self.trivial = trivial / np.linalg.norm(trivial) if self.size else trivial

    def _times_b(self, x: np.ndarray) -> np.ndarray:
        name = "ssymv" if self.lower.dtype == np.float32 else "dsymv"
        symv = getattr(blas, name)  # made when SciPy is imported: no checker knows them
        masked = (x * self.edges).astype(self.lower.dtype)
        return np.stack([symv(1.0, self.lower, row, lower=1) for row in masked]) * self.edges

    def to_double(self) -> None:
        """Take all further products in float64, at twice the memory traffic."""
        self.lower = self.lower.astype(np.float64)

    def product(self, y: Float64[np.ndarray, "k n"]) -> Float64[np.ndarray, "k n"]:
        """Multiply the rows of f64[k, n] with M = D^-1/2 A D^-1/2."""
        x = y * self.scale
        return ((1 - EPS) * self._times_b(x) + EPS * x.sum(axis=1, keepdims=True)) * self.scale


def solve(graph: Graph) -> Cut:
    """Return the second and third eigenpair of the graph's normalised cut.

    Accuracy: residual of the second pair at most 3e-5 of the eigengap (angle to the exact vector
    about 3e-5 rad), error of both eigenvalues below 1e-4. Deterministic: the start reads no
    features and the noise in it is fixed.
    """
    trivial_cut = _degenerate(graph)
    if trivial_cut is not None:
        return trivial_cut
    if graph.size < _DENSE_BELOW:
        return _dense(graph, fallback=False)
    pairs = _iterate(graph)
    if pairs is None:
        return _dense(graph, fallback=True)
    theta, y = pairs
    return Cut(1.0 - theta[:2], _fix_sign(graph.scale * y), degenerate=False, dense=False)


def _degenerate(graph: Graph) -> Cut | None:
    """Closed forms where M has one eigenvalue only beside the trivial 1."""
    n, neighbours = graph.size, graph.neighbours[graph.nodes > 0]
    zero = np.zeros(len(graph.nodes))
    if n < 3:  # fewer nodes than eigenvalues to return: an emptied graph
        return Cut(np.ones(2), zero, degenerate=True, dense=False)
    if neighbours.min() == n or neighbours.max() == 0:  # A is a multiple of 1 1^T
        return Cut(np.ones(2), zero, degenerate=True, dense=False)
    if neighbours.max() == 1 and neighbours.sum() >= 3:  # self-loops alone
        # Three or more isolated patches: at least a two-fold largest eigenvalue among them.
        mu = 1 - (1 - EPS) / (1 - EPS + EPS * n)
        return Cut(np.full(2, mu), zero, degenerate=True, dense=False)
    return None


def _iterate(graph: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """Block Krylov iteration with restarts; None where it did not converge.

    Vectors are rows. The products of all basis vectors are stored, so the residual below is a
    true one (not one of the projected matrix) and costs no further product.
    """
    noise = np.random.default_rng(0)
    capacity = min(_BASIS, graph.size - 2)
    basis = np.empty((1 + capacity, len(graph.nodes)))  # row 0 is the trivial eigenvector
    products = np.empty_like(basis)
    basis[0], used, single, last = graph.trivial, 1, True, np.inf
    fresh = noise.standard_normal((_BLOCK, len(graph.nodes)))
    # D^-1/2 1 leads towards the sparse patches; noise in both rows, to see a double eigenvalue.
    fresh[0] += graph.scale / np.sqrt(np.mean(graph.scale**2))
    for _ in range(_MAX_PASSES):
        new = slice(used, used + _BLOCK)
        basis[new] = _orthonormal(fresh, basis[:used], graph.nodes, noise)
        products[new] = fresh = graph.product(basis[new])
        used += _BLOCK
        if used <= _FIRST_CHECK:
            continue
        found, images = basis[1:used], products[1:used]
        projected = found @ images.T
        theta, ritz = np.linalg.eigh((projected + projected.T) / 2)
        theta, ritz = theta[::-1], ritz.T[::-1]
        leading = ritz[:2] @ found
        residual = np.linalg.norm(ritz[:2] @ images - theta[:2, None] * leading, axis=1)
        gap = theta[0] - theta[1]
        vector_done = residual[0] <= max(VECTOR_TOLERANCE * gap, 1e-13)
        # Error of a Ritz value: residual^2 / distance to the next, and never above the residual.
        value_done = residual[1] ** 2 <= VALUE_TOLERANCE * max(theta[1] - theta[2], residual[1])
        floor = _SINGLE_FLOOR if single else 1e-13
        stalled = residual[0] < 10 * floor and residual[0] > last / 2
        spent = residual[0] <= floor or stalled  # this precision has no more to give
        last = residual[0]
        if (vector_done and value_done) and (
            spent or _sides_decided(graph, leading[0], residual[0] / gap)
        ):
            return theta[:2], leading[0]
        if single and spent:
            single, last = False, np.inf  # the rest is below float32's rounding
            graph.to_double()
            fresh, used = leading, 1
        elif used + _BLOCK > len(basis):
            kept, used = ritz[:_RESTART], 1 + _RESTART
            basis[1:used], products[1:used] = kept @ found, kept @ images
            fresh = products[1:3] - theta[:2, None] * basis[1:3]
    return None


def _sides_decided(graph: Graph, y: np.ndarray, angle: float) -> bool:
    """Whether no patch lies so near the mean of v that the remaining error could move it across.

    The bipartition is v > mean(v). The error of y has length `angle`; three times its root mean
    square per patch is taken as the bound.
    """
    v = graph.scale * y
    margin = np.abs(v - v.sum() / graph.size)
    return not (margin < 3 * angle / np.sqrt(graph.size) * graph.scale).any()


def _orthonormal(block, basis, nodes, noise: np.random.Generator) -> np.ndarray:
    """Orthonormalise the rows of `block` against those of `basis` and each other.

    A row that lies in their span (the Krylov space is exhausted, as on graphs with few distinct
    patches) is replaced by noise.
    """
    block = block / np.linalg.norm(block, axis=1, keepdims=True)
    clean = 0
    while clean < 2:  # twice is enough (Kahan)
        block -= (block @ basis.T) @ basis
        clean += 1
        for k, row in enumerate(block):
            row -= (block[:k] @ row) @ block[:k]
            length = np.sqrt(row @ row)
            if length < 1e-10:
                row[:] = noise.standard_normal(len(row)) * nodes
                length, clean = np.sqrt(row @ row), 0
            row /= length
    return block


def _dense(graph: Graph, fallback: bool) -> Cut:
    """Solve the generalised problem as published: scipy.linalg.eigh(D - A, D), float64."""
    keep = np.flatnonzero(graph.nodes)
    upper = np.triu(graph.lower.T) * graph.edges * graph.edges[:, None]
    b = (upper + np.triu(upper, 1).T)[np.ix_(keep, keep)].astype(np.float64)
    a = (1 - EPS) * b + EPS
    d = np.diag(a.sum(axis=1))
    mu, v = eigh(d - a, d, subset_by_index=[1, 2])
    vector = np.zeros(len(graph.nodes))
    vector[keep] = v[:, 0]
    return Cut(mu, _fix_sign(vector), degenerate=False, dense=fallback)


def _fix_sign(vector: np.ndarray) -> np.ndarray:
    return vector * np.copysign(1.0, vector[np.argmax(np.abs(vector))])
