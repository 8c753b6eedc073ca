"""JPEGs to train on; and what runs of one network in one process need not do twice."""

import pytest

from crate_jax.training import loop
from tests.end_to_end import pictures

_FLOPS = {}


@pytest.fixture(autouse=True)
def flops_are_counted_once(monkeypatch):
    """Tracing a network once more for its number of operations is a sixth of a short run."""
    count = loop.flops_per_image

    def flops_per_image(config, model):
        if model not in _FLOPS:
            _FLOPS[model] = count(config, model)
        return _FLOPS[model]

    monkeypatch.setattr(loop, "flops_per_image", flops_per_image)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders."""
    return pictures.write(tmp_path_factory.mktemp("images"))
