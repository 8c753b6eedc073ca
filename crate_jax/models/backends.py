"""Attention, softmax(Q K^T / sqrt(d_head)) V, by the backends that can compute it.

`xla` works everywhere; `cudnn` is cuDNN's fused attention on CUDA; `pallas` our kernel of MSSA for
TPU (`mssa_kernel`). They agree to 1e-5 in float32 and 1e-2 in bfloat16, outputs and gradients.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crate_jax.models import mssa_kernel

Heads = Float[Array, "b tokens heads d_head"]
Keys = Float[Array, "b keys heads d_head"]
Scores = Float[Array, "b heads tokens keys"]
Backend = Literal["xla", "cudnn", "pallas"]

# Queries a block of this many at a time above twice as many tokens, so that a 60 x 60 grid never
# holds [heads, 3601, 3601] (622 MB an image for 12 heads).
QUERY_BLOCK = 512
# Up to so many tokens `auto` stays with XLA.
FEW_TOKENS = 256


def attend(query: Heads, key: Heads, value: Heads, backend: Backend = "xla") -> Heads:
    """softmax(Q K^T / sqrt(d_head)) V per head, softmax in float32; [b, tokens, heads, d_head].

    Args:
        query: with `xla`, long sequences are taken in blocks of queries, so that memory stays
            linear in the tokens.
        key: with `pallas`, the same array as query and value (MSSA); what is not goes to `xla`.
        value: likewise.
        backend: what computes it.
    """
    if backend == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    if backend == "pallas" and query is key is value:
        return mssa_kernel.attend(query)
    tokens = query.shape[1]
    if tokens <= 2 * QUERY_BLOCK:
        return _attend(query, key, value)
    blocks = -(-tokens // QUERY_BLOCK)
    padded = jnp.pad(query, ((0, 0), (0, blocks * QUERY_BLOCK - tokens), (0, 0), (0, 0)))
    padded = padded.reshape(query.shape[0], blocks, QUERY_BLOCK, *query.shape[2:])
    out = jax.lax.map(lambda rows: _attend(rows, key, value), padded.swapaxes(0, 1))
    return out.swapaxes(0, 1).reshape(query.shape[0], -1, *query.shape[2:])[:, :tokens]


def _attend(query: Heads, key: Keys, value: Keys) -> Heads:
    batch, tokens, heads, width = query.shape
    maps = jax.nn.softmax(_scores(_folded(query), _folded(key)) / math.sqrt(width), axis=-1)
    out = jnp.einsum("nqk,nkd->nqd", maps.astype(value.dtype), _folded(value))
    return out.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def _folded(x: Heads) -> Float[Array, "n tokens d_head"]:
    """Heads beside images: products of one batch axis, which XLA on a CPU computes faster."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


@jax.custom_vjp
def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Q K^T in float32 from operands of less, whose gradients are products of less too.

    jax.nn.dot_product_attention multiplies float32 cotangents by bfloat16 operands: two of a
    layer's six attention products in float32.
    """
    return jnp.einsum("nqd,nkd->nqk", query, key, preferred_element_type=jnp.float32)


def _scores_forward(
    query: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scores(query, key), (query, key)


def _scores_backward(
    operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    query, key = operands
    cotangent = cotangent.astype(query.dtype)
    return (
        jnp.einsum("nqk,nkd->nqd", cotangent, key),
        jnp.einsum("nqk,nqd->nkd", cotangent, query),
    )


_scores.defvjp(_scores_forward, _scores_backward)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A backend, and why it was chosen."""

    backend: Backend
    why: str


def choose(
    wanted: Literal["auto", "xla", "cudnn", "pallas"],
    *,
    tokens: int,
    head_dim: int,
    dtype: DTypeLike,
    tied: bool,
    platform: str,
    absent: bool = False,
) -> Choice:
    """What computes attention in a run.

    `auto` is XLA up to 256 tokens and where the backend is not CUDA; above, in bfloat16, cuDNN
    where its rules allow and a trial on the device agrees with XLA. Our kernel is never chosen by
    `auto`: no measurement on a TPU has said yet that it is faster.

    Args:
        wanted: `config.attention_backend`.
        tokens: of an image, [CLS] included.
        head_dim: d_head.
        dtype: of the computation.
        tied: whether query, key and value are one array (MSSA).
        platform: of the devices: cpu, gpu or tpu.
        absent: whether programs are compiled for devices that are not there.

    Raises:
        ValueError: where a backend is asked for by name and cannot be had.
    """
    if wanted == "pallas":
        if platform != "tpu" or not tied:
            raise ValueError(
                "attention_backend: expected auto, xla or cudnn"
                + (f" on {platform}" if tied else " where query, key and value are not one array")
                + ", got pallas; it is a kernel of MSSA for TPU"
            )
        return Choice("pallas", "as asked")
    if wanted == "xla":
        return Choice("xla", "as asked")
    refusal = _cudnn_refusal(tokens, head_dim, dtype, platform, absent, wanted == "auto")
    if wanted == "cudnn":
        if refusal:
            raise ValueError(f"attention_backend: expected auto or xla, got cudnn; {refusal}")
        return Choice("cudnn", "as asked")
    return Choice("xla", refusal) if refusal else Choice("cudnn", f"{tokens} tokens on CUDA")


def _cudnn_refusal(
    tokens: int, head_dim: int, dtype: DTypeLike, platform: str, absent: bool, auto: bool
) -> str | None:
    """Why cuDNN is not to compute attention; None where it is."""
    if platform not in ("gpu", "cuda"):
        return f"the only one on {platform}" if platform == "cpu" else f"no CUDA on {platform}"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"cuDNN takes bfloat16, not {jnp.dtype(dtype).name}"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN takes heads of a multiple of 8 up to 128, not {head_dim}"
    if auto and tokens <= FEW_TOKENS:
        return f"{tokens} tokens; cuDNN above {FEW_TOKENS}"
    if absent:
        return "cuDNN asks the card what it can do, and there is none"
    return _failed_trial(tokens, head_dim)


def _failed_trial(tokens: int, head_dim: int) -> str | None:
    """What goes wrong when cuDNN computes attention and its gradient on this device, or None.

    With query = key = value, which one release of it got wrong (jax issue 32430).
    """
    w = jax.random.normal(jax.random.key(0), (1, tokens, 1, head_dim), jnp.bfloat16)

    def both(backend):
        def loss(w):
            out = attend(w, w, w, backend)
            return jnp.sum(out.astype(jnp.float32) ** 2), out

        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(w)
        return out.astype(jnp.float32), gradient.astype(jnp.float32)

    try:
        found = both("cudnn")
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return f"cuDNN refuses: {str(error).splitlines()[0]}"
    for name, got, expected in zip(("output", "gradient"), found, both("xla"), strict=True):
        off = float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))
        if not off < 2e-2:
            return f"cuDNN's {name} is off by {off:.1%} on this device"
    return None
