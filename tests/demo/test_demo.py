"""The demo: a page, a picture and scores of a run on scenes, without a training."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from crate_jax import config, data, inference
from crate_jax.convert import checkpoints, shipped
from crate_jax.convert.__main__ import main as convert
from crate_jax.demo import seeing
from crate_jax.demo.__main__ import main as demo
from crate_jax.export import mosaic
from crate_jax.models import base
from crate_jax.segmentation import attention, scoring
from tests import workdirs
from tests.networks import run as run_network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose scenes have five classes."""
    settings = config.default()
    settings.model = config.model("crate-testing", classes=5)
    settings.data.image_size, settings.data.scenes.classes = 32, 5
    return workdirs.write(tmp_path_factory.mktemp("run"), settings=settings)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """An installation without the network that ships."""
    monkeypatch.setattr(shipped, "DIRECTORY", tmp_path / "gone")


@pytest.fixture(scope="module")
def scenes(run):
    return seeing.held_out(json.loads((run / "config.json").read_text()), 10)


def test_top1_and_iou_are_those_of_the_scenes(run, scenes):
    network = inference.load(run)
    score = seeing.score(network, scenes, 10, keep=0.6)
    images = np.stack([scenes[index]["image"] for index in range(10)])
    logits, out = run_network(base.merge(network.definition, network.params), images, capture=True)
    labels = np.array([scenes[index]["label"] for index in range(10)])
    assert score.estimates["top1"].value == np.mean(np.argmax(logits, -1) == labels)
    best = []
    for index in range(10):
        maps = attention.cls_maps(out["query"][1, index][None], out["key"][1, index][None])[0]
        kept = np.asarray(attention.keep_mass(maps)).reshape(-1, 4, 4)
        large = kept.repeat(8, 1).repeat(8, 2)
        mask = scenes[index]["mask"]
        best.append(max((one & mask).sum() / (one | mask).sum() for one in large))
    assert score.estimates["cls_iou/mass/best/layer02"].value == pytest.approx(np.mean(best))
    assert {"cls_iou_other/mass/best/layer02", "cls_iou_gain/mass/best/layer02"} <= set(
        score.estimates
    )
    box = [scoring.centre_box((32, 32))] * 10
    fits = [
        np.sum(b & scenes[i]["mask"]) / np.sum(b | scenes[i]["mask"]) for i, b in enumerate(box)
    ]
    assert score.estimates["cls_iou_centre_box"].value == pytest.approx(np.mean(fits))


@pytest.mark.slow
def test_page_picture_and_scores(run, tmp_path, capsys):
    assert demo([f"--checkpoint={run}", f"--out={tmp_path}", "--scored=6"]) == 0
    said = capsys.readouterr().out
    assert "6 held-out scenes" in said
    assert "own − other" in said
    page = (tmp_path / "index.html").read_text()
    held = json.loads(re.findall(r'id="explorer-data">(.*?)</script>', page, re.DOTALL)[0])
    names = [image["name"] for image in held["images"]]
    assert len(names) == 8
    assert names[6:] == ["chelsea", "astronaut"]
    assert (held["images"][0]["rows"], held["images"][7]["rows"]) == (4, 8)
    for section in ("Attention, masks, parts", "Parts of one object", "Layer by layer"):
        assert section in page
    assert len(page) < 5e6
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.mode == "RGBA"
        assert picture.width > 12 * 128
    before = (tmp_path / "index.html").read_bytes()
    assert demo([f"--checkpoint={run}", f"--out={tmp_path}", "--scored=6"]) == 0
    assert (tmp_path / "index.html").read_bytes() == before


def test_a_packed_run_has_the_same_record(run, tmp_path):
    target = tmp_path / "packed.safetensors"
    assert convert([f"--source={run}", f"--target={target}", "--with-run"]) == 0
    assert shipped.run_of(target) == shipped.run_of(run)


def test_without_the_network_that_ships(broken, tmp_path, capsys):
    assert demo([f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "expected the network that ships" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["folder", "tfds"])
def test_another_data_set_is_refused(name):
    with pytest.raises(ValueError, match=f"expected a network that was trained on scenes.*{name}"):
        seeing.held_out({"data": {"name": name}, "model": {"classes": 3}}, 5)


def test_a_file_without_its_run(run, tmp_path, capsys):
    plain = tmp_path / "plain.safetensors"
    checkpoints.save(checkpoints.read(run), plain)
    assert demo([f"--checkpoint={plain}", f"--out={tmp_path}"]) == 2
    assert "--with-run" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo([f"--out={tmp_path / 'file'}"]) == 2
    said = capsys.readouterr()
    assert "picture.png: expected a folder that can be written, got no folder" in said.err
    assert said.out == ""  # no network was read


def test_scenes_shown_are_the_first_of_the_split(run, scenes):
    """Whatever the length of the set."""
    options = json.loads((run / "config.json").read_text())["data"]
    original = data.source(options, "val")
    for index in range(5):
        np.testing.assert_array_equal(scenes[index]["image"], original[index]["image"])


def test_rows_of_a_mosaic():
    pictures = [np.full((4, 4, 3), shade, np.uint8) for shade in (10, 200)]
    with Image.open(io.BytesIO(mosaic.mosaic({"a": pictures, "b": pictures[::-1]}, 64))) as drawn:
        pixels = np.asarray(drawn)
    left = pixels.shape[1] - (2 * 64 + 8)
    centres = pixels[[32, 32 + 74]][:, [left + 32, left + 72 + 32]]
    np.testing.assert_array_equal(centres[..., 0], [[10, 200], [200, 10]])
    assert (centres[..., 3] == 255).all()
    assert pixels[0, left, 3] == 0  # corners are round, and between pictures is nothing
    assert pixels[32, left + 64 + 4, 3] == 0


@pytest.mark.slow
def test_the_network_that_ships_knows_and_finds_its_objects():
    """Recomputed by hand on scenes of another seed; what its file says is of 2,000."""
    record = shipped.run_of("scenes")
    record["config"]["data"]["scenes"]["seed"] = 5
    scenes, network = seeing.held_out(record["config"], 200), inference.load("scenes")
    images = np.stack([scenes[index]["image"] for index in range(200)])
    logits, out = run_network(base.merge(network.definition, network.params), images, capture=True)
    right = [np.argmax(logits[index]) == scenes[index]["label"] for index in range(200)]
    assert abs(np.mean(right) - record["scores"]["val/top1"]) < 4 * np.sqrt(0.93 * 0.07 / 200)
    maps = attention.cls_maps(out["query"][2], out["key"][2])
    best = []
    for index in range(200):
        kept = np.asarray(attention.keep_mass(maps[index])).reshape(-1, 16, 16)
        large, mask = kept.repeat(4, 1).repeat(4, 2), scenes[index]["mask"]
        best.append(max((one & mask).sum() / (one | mask).sum() for one in large))
    assert np.mean(best) == pytest.approx(
        record["scores"]["val/cls_iou/mass/best/layer03"], abs=0.04
    )
