"""Coding rate and sparsity against the authors' numbers and closed forms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.segmentation import layerwise

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def crate():
    return np.load(REFERENCE / "crate_mini.npz")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_coding_rate_agrees_with_the_authors(crate, layer):
    w = crate["subspace"][layer].reshape(3, 17, 4, 12)
    rates = np.asarray(layerwise.coding_rate(w))
    assert rates.shape == (3,)
    np.testing.assert_allclose(rates.mean(), crate["coding_rate_mean"][layer], rtol=1e-5)
    np.testing.assert_allclose(rates.std(ddof=1), crate["coding_rate_std"][layer], rtol=1e-3)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sparsity_agrees_with_the_authors(crate, layer):
    fraction = layerwise.sparsity(crate["tokens"][layer])
    assert fraction.shape == (3,)
    np.testing.assert_allclose(np.mean(fraction), crate["sparsity"][layer], rtol=1e-6)


@pytest.mark.parametrize(("tokens", "width"), [(17, 5), (4, 9), (6, 6)])
def test_coding_rate_is_the_log_determinant_of_the_token_gram(tokens, width):
    w = np.random.default_rng(0).normal(size=(2, tokens, 3, width))
    unit = w / np.linalg.norm(w, axis=-1, keepdims=True)
    expected = [
        sum(
            np.linalg.slogdet(np.eye(tokens) + width / (tokens * 0.05) * head @ head.T)[1] / 2
            for head in image.transpose(1, 0, 2)
        )
        for image in unit
    ]
    np.testing.assert_allclose(layerwise.coding_rate(w, eps=0.05), expected, rtol=1e-5)


def test_identical_tokens_have_the_rate_of_one_direction():
    """One direction, m times: the Gram has the single eigenvalue m, so R = 1/2 log(1 + p/eps)."""
    w = np.tile(np.array([3.0, 4.0, 0.0]), (1, 10, 2, 1))
    expected = 2 * 0.5 * np.log1p(3 / 0.01)
    np.testing.assert_allclose(layerwise.coding_rate(w), [expected], rtol=1e-5)


def test_zero_tokens_add_nothing():
    w = np.random.default_rng(1).normal(size=(1, 6, 2, 4)).astype(np.float32)
    assert layerwise.coding_rate(np.zeros_like(w)) == 0
    halved = np.concatenate([w, np.zeros_like(w)], axis=1)
    # Twice the tokens, half of them zero: the same Gram, half the factor; that is twice the eps.
    np.testing.assert_allclose(
        layerwise.coding_rate(halved, eps=0.01), layerwise.coding_rate(w, eps=0.02), rtol=1e-5
    )


def test_scale_of_tokens_does_not_matter():
    w = np.random.default_rng(2).normal(size=(2, 6, 2, 4)).astype(np.float32)
    scale = np.random.default_rng(3).uniform(0.1, 50, size=(2, 6, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(
        layerwise.coding_rate(w), layerwise.coding_rate(w * scale), rtol=1e-5
    )


def test_nan_marks_its_own_image_only():
    w = np.ones((3, 5, 2, 4), np.float32)
    w[1, 2, 0, 0] = np.nan
    assert np.isnan(layerwise.coding_rate(w)).tolist() == [False, True, False]
    assert np.isnan(layerwise.sparsity(w.reshape(3, 5, 8))).tolist() == [False, True, False]


def test_sparsity_counts_exact_zeros():
    tokens = np.array([[[0.0, 1.0], [0.0, -0.0]], [[1e-30, 1.0], [2.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(layerwise.sparsity(tokens), [0.75, 0.25])


def test_half_precision_and_jit_give_the_same():
    w = jnp.asarray(np.random.default_rng(4).normal(size=(2, 9, 2, 4)), jnp.bfloat16)
    jitted = jax.jit(layerwise.coding_rate)(w)
    assert jitted.dtype == jnp.float32
    np.testing.assert_allclose(jitted, layerwise.coding_rate(np.asarray(w, np.float32)), rtol=1e-5)


@pytest.mark.usefixtures("types_unchecked")
def test_errors_say_what_is_expected():
    with pytest.raises(ValueError, match=r"out\['query'\]\[layer\]"):
        layerwise.coding_rate(np.zeros((2, 1, 5, 2, 4)))
    with pytest.raises(ValueError, match="eps: expected a number above 0"):
        layerwise.coding_rate(np.zeros((1, 5, 2, 4)), eps=0)
    with pytest.raises(ValueError, match=r"out\['tokens'\]\[layer\]"):
        layerwise.sparsity(np.zeros((2, 1, 5, 8)))


def test_several_layers_in_one_program_cannot_wait_for_each_other():
    """LAPACK calls side by side have hung jaxlib 0.10.2 on two cores: the program has none."""

    def rates(captured):
        return [layerwise.coding_rate(captured[layer]) for layer in range(3)]

    program = jax.jit(rates).lower(jnp.ones((3, 2, 5, 2, 4))).as_text()
    assert "lapack" not in program
    assert "custom_call" not in program


def test_registers_count_for_nothing():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 1, 7, 2, 4)).astype(np.float32)
    tokens = np.maximum(rng.normal(size=(2, 1, 7, 8)), 0).astype(np.float32)
    kept = [0, 3, 4, 5, 6]
    found = layerwise.of_layers(jnp.array(query), jnp.array(tokens), registers=2)
    expected = layerwise.of_layers(jnp.array(query[:, :, kept]), jnp.array(tokens[:, :, kept]))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)
