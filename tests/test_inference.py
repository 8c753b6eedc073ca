"""Which layer, which size, which arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import inference
from crate_jax.models import base, variants
from crate_jax.segmentation import attention
from tests.networks import draw


def network(name="crate-testing", seed=0, **fields):
    model = draw(variants.config(name, **fields), seed)
    return inference.Network(model.config, *base.split(model))


def test_default_sizes():
    for config, asked, size in (
        (variants.config("crate-s8"), None, (480, 480)),
        (variants.config("crate-alpha-l14"), None, (476, 476)),  # the multiple of 14 nearest to 480
        (variants.config("dinov2-s14"), None, (518, 518)),  # its own: twice is 5,476 patches
        (variants.config("dinov3-s16"), None, (480, 480)),
        (variants.config("vit-b16", image_size=(384, 512)), None, (480, 640)),
        (variants.config("vit-b16", image_size=(480, 512)), None, (480, 512)),
        (variants.config("crate-testing"), None, (64, 64)),
        (variants.config("crate-testing", image_size=(32, 48)), None, (64, 96)),
        (variants.config("crate-testing"), 20, (24, 24)),
        (variants.config("crate-testing"), (20, 41), (24, 40)),
    ):
        assert inference.input_size(config, asked) == size
    with pytest.raises(ValueError, match="two patches"):
        inference.input_size(variants.config("crate-testing"), (64, 8))
    with pytest.raises(ValueError, match=r"expected at most 1,048,576 patches .*125,000 x 125,000"):
        inference.input_size(variants.config("crate-testing"), 10**6)


def test_default_layers_are_where_the_figures_look():
    crate, vit = variants.config("crate-b8"), variants.config("vit-b8")
    assert inference.layer_index(crate, None, "attention") == 10
    assert inference.layer_index(vit, None, "attention") == 11
    assert inference.layer_index(crate, None, "maskcut") == 11
    assert inference.layer_index(crate, -12, "maskcut") == 0
    one = variants.config("crate-testing", depth=1)
    assert inference.layer_index(one, None, "attention") == 0
    with pytest.raises(ValueError, match=r"\[-12, 12\)"):
        inference.layer_index(crate, 12, "attention")


def captured(net, pixels):
    @jax.jit
    def run(params):
        model = base.merge(net.definition, params)
        return model(model.preprocess(jnp.asarray(pixels)), capture=True)[1]

    return jax.device_get(run(net.params))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)


def test_maps_and_features_are_those_of_the_model(pixels):
    net = network()
    out = captured(net, pixels)
    maps = inference.Batches(net, inference.cls_maps(net, [1, 0]), 3, (32, 48))(pixels)
    assert maps.shape == (3, 2, 3, 24)
    for place, layer in enumerate((1, 0)):
        expected = attention.cls_maps(out["query"][layer], out["key"][layer])
        np.testing.assert_allclose(maps[:, place], expected, rtol=1e-4, atol=1e-6)
    features = inference.Batches(net, inference.patch_features(net, [0], "tokens"), 3, (32, 48))
    expected = out["tokens"][0][:, 1:]
    np.testing.assert_allclose(features(pixels)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert features.memory > 4 * sum(leaf.size for leaf in jax.tree.leaves(net.params))
    line = inference.memory_line(features, 3)
    assert f"{features.memory / 2**20:.1f} MiB for a batch of 3" in line
    with pytest.raises(ValueError, match=r"expected 3725\.\d GiB for a batch of 3, got .* lower"):
        inference.memory_line(features, 3, matrix=10**6)


def test_features_of_a_vit_are_its_keys_and_rows_do_not_disturb_each_other(pixels):
    net = network("vit-testing")
    run = inference.Batches(net, inference.patch_features(net, [1]), 3, (32, 48))
    found = np.asarray(run(pixels))[:, 0]
    expected = captured(net, pixels)["key"][1][:, 1:].reshape(3, 24, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    alone = np.zeros_like(pixels)
    alone[1] = pixels[1]
    np.testing.assert_array_equal(np.asarray(run(alone))[1, 0], found[1])


def test_fingerprint_tells_weights_apart():
    net = network()
    assert net.fingerprint == network().fingerprint
    assert net.fingerprint != network(seed=1).fingerprint
    drawn = inference.random_weights(net, 1).fingerprint  # whatever the weights were
    assert drawn == inference.random_weights(network(seed=1), 1).fingerprint != net.fingerprint
