"""JPEGs to train on; and what runs of one config in one process need not do twice."""

import json

import pytest

from crate_jax.config import plain
from crate_jax.training import loop, program
from tests.end_to_end import pictures

_FLOPS, _PROGRAMS = {}, {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """Tracing is most of a short run: a run that is resumed here has the program of its beginning.

    Runs that are resumed in processes of their own trace it anew (test_resume).
    """
    count, make = loop.flops_per_image, program.make

    def flops_per_image(config, model):
        if model not in _FLOPS:
            _FLOPS[model] = count(config, model)
        return _FLOPS[model]

    def make_once(config, model, mesh, rate):
        key = json.dumps(plain(config), sort_keys=True), mesh, program.make_step
        if key not in _PROGRAMS:
            _PROGRAMS[key] = make(config, model, mesh, rate)
        return _PROGRAMS[key]

    monkeypatch.setattr(loop, "flops_per_image", flops_per_image)
    monkeypatch.setattr(program, "make", make_once)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders."""
    return pictures.write(tmp_path_factory.mktemp("images"))
