"""LayerNorm in float32, with a gradient that a CPU computes once."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """y = scale (x - mean) / sigma + bias over the last axis, sigma^2 = variance + epsilon.

    In float32 whatever the type of x, with the variance taken around the mean (not E[x^2] -
    E[x]^2). Not Flax's, since its gradient is by hand: derived from Flax's, that of the tokens
    between two layers is a sum of cheap operations that reaches up to the last layer, and XLA on a
    CPU computes it again for each of its uses, so that a ViT's backward pass grows with the square
    of its depth. A quotient it computes once.
    """

    def __init__(self, dim: int, epsilon: float):
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*leading d"]) -> Float[Array, "*leading d"]:
        """x [..., d] -> f32[..., d]."""
        return _norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean = jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
    centred = x.astype(jnp.float32) - mean
    sigma = jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    # Of the tokens only x is kept, which the layer keeps anyway, in its own type.
    return centred / sigma * _like(scale, x) + _like(bias, x), (x, mean, sigma, scale)


def _backward(
    epsilon: float, kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, sigma, scale = kept
    whitened = (x.astype(jnp.float32) - mean) / sigma
    leading = tuple(range(cotangent.ndim - 1))
    of_scale = jnp.sum(cotangent * whitened, axis=leading)
    of_bias = jnp.sum(cotangent, axis=leading)
    of_whitened = cotangent * _like(scale, cotangent)
    along_one = jnp.mean(of_whitened, axis=-1, keepdims=True)
    along_x = jnp.mean(of_whitened * whitened, axis=-1, keepdims=True)
    of_x = (of_whitened - along_one - whitened * along_x) / sigma
    return of_x.astype(x.dtype), of_scale, of_bias


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[d] with axes of length 1 in front, as many as x has: no rank is raised unasked."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


_norm.defvjp(_forward, _backward)
