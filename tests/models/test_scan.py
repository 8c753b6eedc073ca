"""A loop over the layers is the same network: outputs, captured arrays, gradients, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models import base, variants

NAMES = ("crate-testing", "crate-alpha-testing", "crate-mae-testing", "vit-testing")
CAPTURES = (False, True, (-1, 1), (0,), (3, 2, 2))


def both(name, **computation):
    """(definition of the unrolled, of the scanned network, parameters of either)."""
    config = variants.config(name, depth=4)
    plain, params = base.split(variants.build(config, 0, **computation))
    scanned, same = base.split(variants.build(config, 0, scan=True, **computation))
    assert jax.tree.structure(params) == jax.tree.structure(same)
    return plain, scanned, params


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3), np.uint8))


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_captured_arrays(name, images):
    plain, scanned, params = both(name)
    for capture in CAPTURES:
        want = base.forward(plain, capture)(params, images)
        got = base.forward(scanned, capture)(params, images)
        assert set(got[1]) == set(want[1])
        close(got, want)
        if capture and name != "vit-testing":
            assert got[1]["key"] is got[1]["query"]


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, remat, images):
    plain, scanned, params = both(name, remat=remat)

    def gradient(definition):
        def loss(params):
            model = base.merge(definition, params)
            if name != "crate-mae-testing":
                return jnp.mean(model(model.preprocess(images))[0] ** 2)
            noise = jnp.linspace(0, 1, 32).reshape(2, 16)
            return model(model.preprocess(images), mask_noise=noise)[1]["loss"]

        return jax.jit(jax.grad(loss))(params)

    close(gradient(scanned), gradient(plain))


def test_one_layer_is_compiled():
    """The program of a deep network is as long as that of a shallow one."""

    def length(depth, scan):
        config = variants.config("crate-testing", depth=depth)
        definition, params = base.split(variants.abstract(config, scan=scan))
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
        text = jax.jit(base.forward(definition)).lower(params, images).as_text()
        return text.count("dot_general")

    assert length(8, True) == length(3, True) < length(3, False) < length(8, False)
