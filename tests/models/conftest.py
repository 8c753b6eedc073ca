"""The reference cases, and their weights as networks of ours."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from crate_jax.convert import layouts, weights
from crate_jax.models.crate import CrateConfig
from crate_jax.models.crate_alpha import CrateAlphaConfig
from crate_jax.models.crate_mae import CrateMAEConfig
from crate_jax.models.vit import ViTConfig
from tests import networks

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
SIZE = {"image_size": 32, "patch_size": 8, "dim": 48, "heads": 4}
CONFIGS = {
    "crate_mini": CrateConfig(**SIZE, depth=3, classes=10),
    "crate_alpha_mini": CrateAlphaConfig(**SIZE, depth=2, classes=10),
    "crate_mae_mini": CrateMAEConfig(**SIZE, depth=2, decoder_depth=2),
    "dino_vit_mini": ViTConfig(**SIZE, depth=2, classes=0),
}


class Case:
    """One reference file: its arrays, images as NHWC, and the network with its weights."""

    def __init__(self, name):
        with np.load(REFERENCE / f"{name}.npz") as file:
            self.arrays = {k: file[k] for k in file.files}
        self.config = CONFIGS[name]
        assert json.loads(str(self.arrays["config"]))["heads"] == self.config.heads
        self.state = {
            k.removeprefix("state_dict/"): v
            for k, v in self.arrays.items()
            if k.startswith("state_dict/")
        }
        self.params = weights.to_params(
            self.state, self.config, layouts.of(self.config.family, "pytorch")
        )
        self.model = weights.build(self.params, self.config)

    def __call__(self, images, **kwargs):
        return networks.run(self.model, images, **kwargs)

    def __getitem__(self, key):
        return self.arrays[key]

    def images(self, key="images"):
        return self.arrays[key].transpose(0, 2, 3, 1)


@pytest.fixture(autouse=True)
def _strict(strict_promotion):
    pass


@pytest.fixture(scope="package")
def reference():
    return functools.cache(Case)


@pytest.fixture(scope="package", autouse=True)
def _exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def error():
    """Norm of the difference over the norm of what is expected."""
    return lambda got, want: float(
        np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
    )


@pytest.fixture(scope="session")
def run():
    return networks.run
