"""`score --dataset=voc` on a folder that is small enough to count by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from crate_jax import inference
from crate_jax.score.__main__ import main as score

PERSON, CAR, BIRD, VOID = 15, 7, 3, 255


def write(root, name, image, labels):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([value % 256 for value in range(768)])
    picture.save(root / "SegmentationClass" / f"{name}.png")
    with open(root / "ImageSets" / "Segmentation" / "val.txt", "a") as file:
        file.write(name + "\n")


@pytest.fixture
def voc(tmp_path):
    """Red on the left half (what head 0 sees), green in the last cell (head 1), grid 4 x 4."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    image, labels = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8)
    image[:, :32, 0] = 255
    image[24:, 48:, 1] = 255
    labels[:, :32] = PERSON
    labels[:8, :32] = VOID
    labels[24:, 48:] = CAR
    write(root, "2007_000001", image, labels)
    image, labels = np.zeros((48, 32, 3), np.uint8), np.zeros((48, 32), np.uint8)
    image[:, :16, 0] = 255
    labels[24:] = BIRD
    write(root, "2007_000002", image, labels)
    labels = np.zeros((20, 20), np.uint8)
    labels[5:9] = VOID
    write(root, "2007_000003", np.full((20, 20, 3), 90, np.uint8), labels)
    return tmp_path


@pytest.fixture
def seeing(monkeypatch):
    """In place of attention: head 0 is a patch's red, head 1 its green, in exact steps."""

    def attention_of_layers(network, layers):
        def run(params, images):
            cells = images.reshape(len(images), 4, 8, 4, 8, 3).astype(jnp.float32).mean((2, 4))
            maps = jnp.moveaxis(jnp.round(cells / 64)[..., :2], -1, 1)
            maps = maps.reshape(len(images), 1, 2, 16)
            nothing = jnp.zeros((len(images), len(layers)))
            maps = jnp.repeat(maps, len(layers), axis=1)
            return {"maps": maps, "coding_rate": nothing, "sparsity": nothing}

        return run

    monkeypatch.setattr(inference, "attention_of_layers", attention_of_layers)


def run(checkpoint, root, out, *extra):
    return score(
        [
            *("--dataset=voc", f"--root={root}", f"--checkpoint={checkpoint}", f"--out={out}"),
            "--task=attention",
            *("--size=32", "--batch-size=2", "--no-random", *extra),
        ]
    )


def test_values_counted_by_hand(tiny, voc, seeing, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(tiny, voc, out, "--keep=0.5") == 0
    result = json.loads((out / "scores.json").read_text())
    assert result["counts"] == {
        "images": 3,
        "used": 3,
        "failed": 0,
        "failures": {},
        "without_object": 1,
    }
    # First image, cells of 8 x 16 px; the person has 768 valid pixels, the car 128.
    # Area rule: head 0 keeps the left half, 768 valid pixels: person 1, car 0. Head 1 keeps the
    # green cell and, all else being equal, the last 7: the lower half, 1024 pixels: person
    # 512 / (1024 + 768 - 512) = 0.4, car 128 / 1024.
    # Mass rule: head 0 keeps the lower 4 of its 8 equal cells: person 512 / 768, car 0. Head 1
    # keeps the green cell: person 0, car 1.
    # Second image, the bird is the lower half. Area: head 0 384 / 1152, head 1 (nothing seen, the
    # last 8) 1. Mass: head 0 384 / 768, head 1 keeps nothing.
    expected = {
        "area/best": ((1 + 0.125) / 2, 1),
        "area/mean": ((0.5 + 0.2625) / 2, (1 / 3 + 1) / 2),
        "area/fixed": (0.2625, 1 / 3),  # head 1, the bird's; head 0, the person's
        "mass/best": ((2 / 3 + 1) / 2, 0.5),
        "mass/mean": ((1 / 3 + 0.5) / 2, 0.25),
        "mass/fixed": (1 / 3, 0.0),  # head 0, the bird's; head 1, the car's
    }
    for name, images in expected.items():
        for layer in ("layer01", "layer02"):
            figure = result["scores"][f"cls_iou/{name}/{layer}"]
            assert figure["value"] == pytest.approx(np.mean(images), abs=1e-9), name
            # Of two images, every mean drawn lies between them, and the ends are drawn often.
            assert (figure["low"], figure["high"]) == pytest.approx((min(images), max(images)))
    # The first image's maps against the second's bird: area 1/3 and 1, mass 384 / 768 and 0. The
    # second's (the last that holds an object) against the first's person and car. Area, head 0:
    # the left half, person 768 / 768 and car 0; head 1: the lower half, 0.4 and 128 / 1024. Mass,
    # head 0: the lower left, 512 / 768 and 0; head 1: nothing.
    for name, images in {
        "area/best": (1, (1 + 0.125) / 2),
        "area/mean": (2 / 3, (0.5 + 0.2625) / 2),
        "mass/best": (0.5, (2 / 3 + 0) / 2),
    }.items():
        other = result["scores"][f"cls_iou_other/{name}/layer01"]["value"]
        assert other == pytest.approx(np.mean(images)), name
    # All ones: 3/7 and 1/14 of 1792 valid pixels; half of the second image.
    assert result["scores"]["cls_iou_all_ones"]["value"] == pytest.approx((0.25 + 0.5) / 2)
    # Centre box: person 256 / 1024, car 0; bird 192 / 960.
    assert result["scores"]["cls_iou_centre_box"]["value"] == pytest.approx((0.125 + 0.2) / 2)
    for name, value in {"keep": 0.5, "size": [32, 32], "attention_layers": [0, 1]}.items():
        assert result["settings"][name] == value
    assert "0.781" in capsys.readouterr().out  # area, best head, in the table
    page = (out / "index.html").read_text()
    for text in ("0.781", "AUROC", "pointing", "own − other", "next image&#39;s objects"):
        assert text in page


def test_random_weights_and_gain(tiny, voc, tmp_path):
    assert run(tiny, voc, tmp_path / "out", "--seed=5", "--layers=-1", "--limit=2") == 0
    plain = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert not any("layer01" in name or "random" in name for name in plain)
    argv = [
        "--dataset=voc",
        "--task=attention",
        f"--root={voc}",
        f"--checkpoint={tiny}",
        f"--out={tmp_path / 'two'}",
    ]
    assert score([*argv, "--size=32", "--seed=5"]) == 0
    scores = json.loads((tmp_path / "two" / "scores.json").read_text())["scores"]
    value = {name: figure["value"] for name, figure in scores.items()}
    for rule in ("mass", "area"):
        name = f"{rule}/best/layer02"
        gain = value[f"cls_iou/{name}"] - value[f"cls_iou_random/{name}"]
        assert value[f"cls_iou_gain/{name}"] == pytest.approx(gain)
    assert value["coding_rate/layer01"] > 0
    assert 0 < value["sparsity/layer02"] < 1


def test_unusable_images_are_counted(tiny, voc, tmp_path, capsys):
    folder = voc / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / "2007_000003.jpg").write_bytes(b"\xff\xd8 torn")
    Image.new("RGB", (32, 48)).save(folder / "SegmentationClass" / "2007_000002.png")
    assert run(tiny, voc, tmp_path / "out") == 1
    counts = json.loads((tmp_path / "out" / "scores.json").read_text())["counts"]
    assert (counts["used"], counts["failed"]) == (1, 2)
    assert "expected class numbers" in counts["failures"]["2007_000002"]
    assert run(tiny, voc, tmp_path / "out", "--on-error=skip") == 0
    capsys.readouterr()
    assert run(tiny, voc, tmp_path / "out", "--on-error=stop") == 2
    assert "2007_000002" in capsys.readouterr().err
