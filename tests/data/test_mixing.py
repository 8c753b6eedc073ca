import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.data import mixing

MIXUP = jax.jit(mixing.mixup)
CUTMIX = jax.jit(mixing.cutmix)


@pytest.fixture(scope="module")
def batch():
    # image i is i everywhere, so every pixel says where it comes from
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 20, 30, 3))
    return images, jax.nn.one_hot(jnp.arange(4), 4)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_images_as_labels(batch, seed):
    images, labels = MIXUP(jax.random.key(seed), *batch, 0.8)
    lam = labels[0, 0]
    assert 0 <= lam <= 1
    expected = lam * np.arange(4) + (1 - lam) * np.array([3, 0, 1, 2])
    np.testing.assert_allclose(images[:, 7, 9, 1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(labels[1], [1 - lam, lam, 0, 0], atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_labels_by_the_area_of_one_box(batch, seed):
    images, labels = CUTMIX(jax.random.key(seed), *batch, 1.0)
    foreign = np.asarray(images[1, :, :, 0]) == 0
    np.testing.assert_allclose(labels[1], [foreign.mean(), 1 - foreign.mean(), 0, 0], atol=1e-6)
    rows, columns = foreign.any(1), foreign.any(0)
    np.testing.assert_array_equal(foreign, rows[:, None] & columns[None, :])
    for line in (rows, columns):  # one run
        assert np.abs(np.diff(line.astype(int))).sum() <= 2
    np.testing.assert_array_equal(np.asarray(images[2, :, :, 1]) == 1, foreign)


def test_switch_and_weight_follow_their_laws():
    images = jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 1, 1, 1))
    labels = jnp.eye(2)
    keys = jax.random.split(jax.random.key(1), 4000)
    mix = jax.vmap(lambda key: mixing.mixup_or_cutmix(key, images, labels, switch=0.3))
    mixed, weights = jax.jit(mix)(keys)
    # one pixel is replaced wholly or, if the box is empty, not at all: cutmix makes integers
    is_cutmix = np.asarray((mixed == jnp.round(mixed)).all((1, 2, 3, 4)))
    assert is_cutmix.mean() == pytest.approx(0.3, abs=0.03)
    lam = np.asarray(weights)[~is_cutmix, 0, 0]
    # Beta(a, a) with a = 0.8: mean 1/2, variance 1 / (4 (2 a + 1))
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / (4 * 2.6), rel=0.06)


def test_alpha_zero_turns_a_kind_off(batch, monkeypatch):
    monkeypatch.setattr(mixing, "mixup", lambda key, images, labels, alpha: ("mixup", alpha))
    monkeypatch.setattr(mixing, "cutmix", lambda key, images, labels, alpha: ("cutmix", alpha))
    assert mixing.mixup_or_cutmix(None, *batch, 0, 0) == batch
    assert mixing.mixup_or_cutmix(None, *batch, 0.8, 0) == ("mixup", 0.8)
    assert mixing.mixup_or_cutmix(None, *batch, 0, 1.0) == ("cutmix", 1.0)


def test_types_are_kept(batch):
    images = batch[0].astype(jnp.bfloat16)
    for mix in (mixing.mixup, mixing.cutmix):
        shapes = jax.eval_shape(mix, jax.random.key(0), images, batch[1], 0.8)
        assert [shape.dtype for shape in shapes] == [jnp.bfloat16, jnp.float32]
