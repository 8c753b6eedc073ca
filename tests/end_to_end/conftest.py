"""JPEGs to train on; and what runs of one config in one process need not do twice."""

import json
import pathlib

import pytest
import skimage
from PIL import Image

from crate_jax.config import plain
from crate_jax.convert import checkpoints
from crate_jax.models import variants
from crate_jax.training import loop, program
from crate_jax.training.step import make_step
from tests.end_to_end import pictures, segmenting

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
        key = json.dumps(plain(config), sort_keys=True), mesh
        if program.make_step is not make_step:  # of a test that changes the step
            return make(config, model, mesh, rate)
        if key not in _PROGRAMS:
            _PROGRAMS[key] = make(config, model, mesh, rate)
        return _PROGRAMS[key]

    monkeypatch.setattr(loop, "flops_per_image", flops_per_image)
    monkeypatch.setattr(program, "make", make_once)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders."""
    return pictures.write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    checkpoints.save(variants.build(variants.config("crate-testing"), 0), path)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A dozen photographs of scikit-image, small, of different sizes, in two folders."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, name in enumerate(segmenting.PHOTOGRAPHS):
        image = Image.open(pathlib.Path(skimage.data_dir) / name)
        image.thumbnail((60 + 4 * index, 90))
        target = folder / ("more" if index % 3 == 0 else ".") / name
        target.parent.mkdir(exist_ok=True)
        image.save(target)
    return folder
