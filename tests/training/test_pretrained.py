"""`init_from`: the weights of another network, for which the config says what its file does not."""

import dataclasses

import numpy as np
import pytest

from crate_jax.convert import checkpoints, names
from crate_jax.models import base, variants
from crate_jax.training import pretrained
from tests.networks import draw

NETWORKS = {
    "mae with lambda 5": variants.config("crate-mae-testing", lambd=5.0, mask_ratio=0.5),
    "soft threshold": variants.config("crate-testing", nonlinearity="ista-soft-threshold"),
    "mlp without skip": variants.config("crate-testing", nonlinearity="mlp", mlp_skip=False),
    "other constants": variants.config("crate-testing", step_size=0.2, epsilon=1e-6),
    "ViT of other epsilon": variants.config("vit-testing", epsilon=1e-5),
    "ViT of other ratio": variants.config("vit-testing", mlp_ratio=2.7),
    "ViT of means": variants.config("vit-testing", pool="mean"),
    "no square": variants.config("crate-testing", image_size=(24, 40)),
    "alpha": variants.config("crate-alpha-testing", heads=6),
    "heads of another width": variants.config("crate-testing", heads=2, head_dim=8),
}


def weights_of(model):
    flat = dict(names.flatten(base.split(model)[1]))
    return {k: np.asarray(v) for k, v in flat.items() if k.split("/")[0] not in pretrained.HEAD}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("declared", [True, False])
def test_files_that_we_wrote_start_a_run_of_their_own_config(
    network, suffix, declared, tmp_path, request
):
    if suffix == ".pth":
        pytest.importorskip("torch")
    config = NETWORKS[network]
    model = draw(config)
    path = tmp_path / f"x{suffix}"
    checkpoints.save(model, path, declared=declared)
    found = pretrained.read(str(path), config)
    expected = weights_of(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_grid_of_the_same_shape_but_another_size(tmp_path):
    """15 positions are no square; 6 x 10 patches of the run are as 3 x 5."""
    config = NETWORKS["no square"]
    checkpoints.save(draw(config), tmp_path / "x.npz", declared=False)
    larger = dataclasses.replace(config, image_size=(48, 80))
    assert pretrained.read(str(tmp_path / "x.npz"), larger)["positions"].shape == (1, 61, 24)
    square = dataclasses.replace(config, image_size=(32, 32))
    with pytest.raises(ValueError, match="15 positions are no square grid") as raised:
        pretrained.read(str(tmp_path / "x.npz"), square)
    assert "image_size=(height, width)" in str(raised.value)


def test_a_difference_says_who_said_what(tmp_path):
    config = variants.config("crate-testing", lambd=0.5)
    path = tmp_path / "x.safetensors"
    checkpoints.save(draw(config), path)
    other = dataclasses.replace(config, lambd=5.0, depth=3)
    with pytest.raises(ValueError) as raised:
        pretrained.read(str(path), other)
    text = str(raised.value)
    assert "lambd: 0.5 there, 5.0 here (the first is stored in the file)" in text
    assert "depth: 2 there, 3 here (the first is stored in the file)" in text
    assert "python -m crate_jax.convert" in text


def test_what_shapes_tell_is_never_assumed(tmp_path):
    ista, mlp = (variants.config("crate-testing", nonlinearity=n) for n in ("ista", "mlp"))
    checkpoints.save(draw(ista), tmp_path / "x.npz", declared=False)
    with pytest.raises(ValueError, match="nonlinearity: 'ista' there"):
        pretrained.read(str(tmp_path / "x.npz"), mlp)
    five = variants.config("crate-testing", heads=5, head_dim=8)
    with pytest.raises(ValueError, match=r"heads: expected a divisor of .*got 5 \(config.model\)"):
        pretrained.read(str(tmp_path / "x.npz"), five)


def test_a_name_that_says_its_lambda(tmp_path):
    config = NETWORKS["mae with lambda 5"]
    path = tmp_path / "crate-mae-lmd5.0.npz"
    checkpoints.save(draw(config), path, declared=False)
    assert pretrained.read(str(path), config)
    with pytest.raises(ValueError, match=r"the file's name says lmd5\.0, and config\.model"):
        pretrained.read(str(path), dataclasses.replace(config, lambd=0.5))
