"""LaSt-ViT's pooling: a feature of the patches that vary least from channel to channel.

[CLS] is replaced by a selection among the patch tokens, so that the label is read from patches of
the object and not from scratch space in the background (arXiv 2602.22394).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.jit, static_argnames=("k", "symmetric"))
def last_vit(
    tokens: Float[Array, "b n d"], k: int = 1, *, symmetric: bool = False
) -> Float[Array, "b d"]:
    """For each channel, the mean over the k patches of largest R = T / |F - T| of T.

    F is T low-passed over its channels, patch by patch: its Fourier transform, zero frequency in
    the middle, times exp(-(j - c)^2 / (2 d)), j = 0 .. d - 1. R is signed: a negative entry wins
    only where all are negative. Gradients flow through the chosen entries of T, not the choice.

    Deviation: where F = T, R is infinite with the sign of T, and 0 for T = 0; the public code
    divides by zero.

    Args:
        tokens: f[b, n, d], patch tokens after the final norm, without [CLS] and registers.
        k: patches of a channel; the public code has 1, its README 7 as well. All if there are
            fewer.
        symmetric: the filter's centre c on the zero frequency, d // 2; False: one bin below it,
            d / 2 - 1, as the public code has it.

    Returns:
        f32[b, d].
    """
    tokens = tokens.astype(jnp.float32)
    d = tokens.shape[-1]
    centre = d // 2 if symmetric else d / 2 - 1
    kernel = jnp.exp(-((jnp.arange(d, dtype=jnp.float32) - centre) ** 2) / (2 * d))
    fixed = jax.lax.stop_gradient(tokens)
    spectrum = (
        jnp.fft.fft(fixed, axis=-1) * jnp.fft.ifftshift(kernel).astype(jnp.complex64)[None, None]
    )
    distance = jnp.abs(jnp.fft.ifft(spectrum, axis=-1).real - fixed)
    apart = distance > 0
    ratio = jnp.where(
        apart,
        fixed / jnp.where(apart, distance, 1),
        jnp.where(fixed == 0, 0.0, jnp.copysign(jnp.inf, fixed)),
    )
    _, chosen = jax.lax.top_k(jnp.moveaxis(ratio, 1, -1), min(k, tokens.shape[1]))
    kept = jnp.take_along_axis(jnp.moveaxis(tokens, 1, -1), chosen, axis=-1)
    return jnp.mean(kept, axis=-1)
