"""Images to maps, masks and overlays: each method, killed and resumed, in shards, odd files."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage
from PIL import Image
from pycocotools.coco import COCO

from crate_jax import segment
from crate_jax.convert import checkpoints
from crate_jax.export import coco
from crate_jax.models import variants
from tests.end_to_end import runs

PHOTOGRAPHS = (
    "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png gravel.png grass.png "
    "hubble_deep_field.jpg ihc.png retina.jpg rocket.jpg"
).split()
METHODS = {
    "attention": ["--heads-montage", "--rule=area"],
    "maskcut": ["--tau=0.2"],
    "parts": [],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    checkpoints.save(variants.build(variants.config("crate-testing"), 0), path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A dozen photographs of scikit-image, small, of different sizes, in two folders."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, name in enumerate(PHOTOGRAPHS):
        image = Image.open(pathlib.Path(skimage.data_dir) / name)
        image.thumbnail((60 + 4 * index, 90))
        target = folder / ("more" if index % 3 == 0 else ".") / name
        target.parent.mkdir(exist_ok=True)
        image.save(target)
    return folder


def run(checkpoint, images, out, method, *extra):
    return segment.main(
        [
            f"--checkpoint={checkpoint}",
            f"--images={images}",
            f"--out={out}",
            f"--method={method}",
            "--batch-size=2",
            *METHODS[method],
            *extra,
        ]
    )


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(pathlib.Path(out).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(checkpoint, photographs, tmp_path_factory):
    """Uninterrupted runs of each method."""
    outs = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    for method, out in outs.items():
        assert run(checkpoint, photographs, out, method) == 0
    return outs


def test_killed_and_resumed_run_writes_the_same_bytes(checkpoint, photographs, whole, tmp_path):
    command = [sys.executable, "-m", "crate_jax.segment", f"--checkpoint={checkpoint}"]
    command += [f"--images={photographs}", f"--out={tmp_path}", "--method=maskcut"]
    command += ["--batch-size=2", *METHODS["maskcut"]]
    process = subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment())
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if sum(1 for _ in tmp_path.glob("records/**/*.json")) >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("maps/**/*.npz")}
    assert 0 < len(done) < len(PHOTOGRAPHS)
    assert not (tmp_path / "index.html").exists()

    assert run(checkpoint, photographs, tmp_path, "maskcut") == 0
    assert strip_partial(contents(tmp_path)) == contents(whole["maskcut"])
