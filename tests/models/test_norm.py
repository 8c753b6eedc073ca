"""LayerNorm against Flax's, whose gradient JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crate_jax.models.norm import LayerNorm

DIM = 24


def pair(epsilon):
    flax = nnx.LayerNorm(DIM, epsilon=epsilon, use_fast_variance=False, rngs=nnx.Rngs(0))
    ours, rng = LayerNorm(DIM, epsilon), np.random.default_rng(1)
    for name in ("scale", "bias"):
        values = jnp.asarray(rng.normal(size=DIM), jnp.float32)
        setattr(flax, name, nnx.Param(values))
        setattr(ours, name, nnx.Param(values))
    return ours, flax


def value_and_gradients(norm, x, weights):
    definition, state = nnx.split(norm)

    def value(state, x):
        y = nnx.merge(definition, state)(x)
        return jnp.sum(jnp.sin(y) * weights), y

    (_, y), (of_state, of_x) = jax.value_and_grad(value, (0, 1), has_aux=True)(state, x)
    return [y, of_x, *jax.tree.leaves(of_state)]


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("shape", [(DIM,), (7, DIM), (3, 5, DIM)])
def test_equals_flax_with_gradients(shape, epsilon, strict_promotion):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.7, 2, shape), jnp.float32)
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    found, expected = (value_and_gradients(norm, x, weights) for norm in pair(epsilon))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_the_variance_is_taken_around_the_mean():
    x = 1000 + jnp.arange(DIM, dtype=jnp.float32)[None]  # E[x^2] - E[x]^2 would keep few digits
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(LayerNorm(DIM, 1e-5)(x), expected, rtol=1e-6, atol=1e-6)


def test_it_is_float32_of_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, DIM)), jnp.bfloat16)
    ours, flax = pair(1e-5)
    assert ours(x).dtype == jnp.float32
    np.testing.assert_allclose(ours(x), flax(x.astype(jnp.float32)), rtol=1e-5, atol=1e-5)
