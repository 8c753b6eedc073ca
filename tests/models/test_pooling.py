"""LaSt-ViT's pooling against the authors' code."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models import base, pooling, variants
from tests.networks import draw

CASE = np.load(Path(__file__).parents[1] / "reference" / "any_vit" / "last_vit_pooling.npz")


@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_authors(k):
    found = pooling.last_vit(jnp.array(CASE["patch_tokens"]), k)
    np.testing.assert_allclose(found, CASE[f"pooled_k{k}"], rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_chosen_patches_alone():
    tokens = jnp.array(CASE["patch_tokens"])
    gradient = jax.grad(lambda t: pooling.last_vit(t).sum())(tokens)
    expected = np.arange(tokens.shape[1])[None, :, None] == CASE["chosen_patch"][:, None]
    np.testing.assert_array_equal(gradient, expected.astype(np.float32))


def test_zeros_are_pooled_to_zero():
    found = pooling.last_vit(jnp.zeros((1, 4, 6)), symmetric=True)
    np.testing.assert_array_equal(found, np.zeros((1, 6)))


@pytest.mark.parametrize("name", ["crate-testing", "vit-testing"])
def test_a_network_can_be_trained_with_it(name):
    config = dataclasses.replace(variants.config(name), pool="last_vit")
    definition, params = base.split(draw(config))
    images = np.random.default_rng(0).normal(size=(2, *config.image_size, 3)).astype(np.float32)

    def loss(params):
        logits, out = base.merge(definition, params)(images, capture=-1)
        return jnp.sum(logits**2), (logits, out)

    gradients, (logits, out) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))

    @jax.jit
    def pooled(params, tokens):
        model = base.merge(definition, params)
        norm = model.head_norm if name.startswith("crate") else model.norm
        expected = pooling.last_vit(norm(tokens[:, 1:]))
        return expected, model.head(expected)

    expected, of_expected = pooled(params, out["tokens"][0])
    np.testing.assert_allclose(out["features"], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(logits, of_expected, rtol=2e-3, atol=1e-4)


def test_other_families_refuse_it():
    with pytest.raises(ValueError, match="pool: expected one of cls, mean, got 'last_vit'"):
        dataclasses.replace(variants.config("crate-mae-testing"), pool="last_vit")
