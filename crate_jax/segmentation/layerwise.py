"""Coding rate and sparsity of a layer: the two terms of sparse rate reduction.

CRATE's objective (arXiv 2306.01129) is to compress tokens against subspaces,
which lowers the coding rate of w = LN(z) U, and to make them sparse, which raises the share of
zeros that ISTA leaves. Both are measured layer by layer from captured arrays.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

# torch.nn.functional.normalize's floor, with which the authors' code scales tokens: a zero token
# stays zero and adds nothing to the rate.
_NORM_FLOOR = 1e-12


def of_layers(
    query: Float[Array, "layers b tokens heads d_head"],
    tokens: Float[Array, "layers b tokens d"],
    registers: int = 0,
) -> dict[str, Float[Array, "b layers"]]:
    """Both measures of every captured layer, of [CLS] and the patches.

    Registers are left out of both: they hold no part of the image, and a network that has them is
    then measured on the same tokens as one that has none.

    Args:
        query: f[layers, b, 1+registers+n, heads, d_head], as a model's `capture` returns it.
        tokens: f[layers, b, 1+registers+n, d], likewise.
        registers: tokens between [CLS] and the patches, `model.config.registers`.

    Returns:
        {"coding_rate": f32[b, layers], "sparsity": f32[b, layers]}.
    """
    if registers:
        left_out = slice(1, 1 + registers)
        query, tokens = (jnp.delete(array, left_out, axis=2) for array in (query, tokens))
    return {
        "coding_rate": jnp.stack([coding_rate(w) for w in query], axis=1),
        "sparsity": jnp.stack([sparsity(z) for z in tokens], axis=1),
    }


def coding_rate(
    w: Float[ArrayLike, "b tokens heads d_head"], eps: float = 0.01
) -> Float[Array, " b"]:
    """Coding rate of the tokens of each image against the layer's subspaces.

    R = sum over heads k of 1/2 logdet(I + p / (m eps) W_k W_k^T), where W_k in R^{m x p} holds the
    m tokens ([CLS] included) in subspace k, each scaled to unit norm *within the head*, and
    p = d_head. Natural logarithm (nats). Computed from the smaller of the two Gram matrices,
    p x p or m x m, which have the same determinant.

    The papers print eps^2 where this has eps (2306.01129); the authors' code uses eps
    = 0.01 unsquared, which is what the published plots show. Later work reports that MSSA with a
    skip can raise the rate from layer to layer; nothing here assumes that it falls.

    Args:
        w: f[b, 1+n, heads, d_head], a layer's captured `query`.
        eps: precision of the code, above 0.

    Returns:
        f32[b], at least 0; NaN for an image with a NaN token. A batch's mean and standard
        deviation (the authors divide by b - 1) are the caller's.

    Raises:
        ValueError: `w` is not four-dimensional or has no token, or eps is not positive.
    """
    w = jnp.asarray(w, jnp.float32)
    if w.ndim != 4 or 0 in w.shape[1:]:
        raise ValueError(
            f"w: expected that of one layer, [batch, 1+patches, heads, d_head], got {w.shape}; "
            "index the layer of a capture first: out['query'][layer]"
        )
    if not eps > 0:
        raise ValueError(f"eps: expected a number above 0, got {eps}; the published plots use 0.01")
    return _coding_rate(w, eps)


@jax.jit
def _coding_rate(w, eps):
    tokens, p = w.shape[1], w.shape[3]
    w = w / jnp.maximum(jnp.linalg.norm(w, axis=-1, keepdims=True), _NORM_FLOOR)
    gram_of = "bmhp,bmhq->bhpq" if p <= tokens else "bphd,bqhd->bhpq"
    gram = jnp.einsum(gram_of, w, w, precision="highest")
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jnp.sum(_log_determinant(identity + p / (tokens * eps) * gram), axis=-1) / 2


def _log_determinant(matrix):
    """log det of symmetric matrices f[..., n, n] with eigenvalues of at least 1 -> f[...].

    The logarithms of the pivots of Gaussian elimination, summed: they are at least 1 too, so that
    no rows need be exchanged. Not by `jnp.linalg`: on CPUs, two of its batched LAPACK calls that
    XLA runs side by side, as for two layers in one program, can wait for each other for ever
    (jaxlib 0.10.2 on two cores: each holds a thread of the pool whose tasks it waits for).
    """

    def eliminate(rest, j):
        row = jax.lax.dynamic_index_in_dim(rest, j, axis=-2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, j, axis=-1)
        return rest - (row / pivot)[..., :, None] * row[..., None, :], jnp.log(pivot[..., 0])

    return jnp.sum(jax.lax.scan(eliminate, matrix, jnp.arange(matrix.shape[-1]))[1], axis=0)


def sparsity(tokens: Float[ArrayLike, "b tokens d"]) -> Float[Array, " b"]:
    """Fraction of exact zeros among an image's tokens after ISTA.

    The papers plot one minus it, the fraction of non-zeros (2306.01129). Exact zeros
    are meaningful for CRATE, whose ISTA ends in a ReLU without a skip; for a ViT it is near 0.

    Args:
        tokens: f[b, 1+n, d], a layer's captured `tokens`, [CLS] included.

    Returns:
        f32[b] in [0, 1]; NaN for an image with a NaN token.

    Raises:
        ValueError: `tokens` is not three-dimensional or has no entry.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 3 or 0 in tokens.shape[1:]:
        raise ValueError(
            f"tokens: expected those of one layer, [batch, 1+patches, d], got {tokens.shape}; "
            "index the layer of a capture first: out['tokens'][layer]"
        )
    zeros = jnp.mean(tokens == 0, axis=(1, 2), dtype=jnp.float32)
    return jnp.where(jnp.any(jnp.isnan(tokens), axis=(1, 2)), jnp.nan, zeros)
