"""`score --dataset=coco` against pycocotools by hand, on masks that `segment` wrote."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crate_jax.export.coco import encode_mask
from crate_jax.score.__main__ import main as score
from crate_jax.segment.__main__ import main as segment

SIZES = {3: (40, 56), 11: (50, 50), 12: (36, 30), 40: (64, 48)}  # id: height, width


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory):
    """A COCO folder whose objects are some of the masks found, some boxes, and a crowd."""
    root = tmp_path_factory.mktemp("coco")
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images = []
    for number, (height, width) in SIZES.items():
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))[:height, :width]
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "val2017" / name, quality=95)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(truth))

    out = root / "segmented"
    options = ["--size=64", "--tau=0.2", "--max-masks=3", f"--annotations={file}"]
    argv = [f"--checkpoint={tiny}", f"--images={root / 'val2017'}", f"--out={out}"]
    assert segment([*argv, "--method=maskcut", *options, "--save=coco"]) == 0
    found = json.loads((out / "coco.json").read_text())["annotations"]
    predictions = [{**mask, "score": 1.0} for mask in found]

    def annotate(image, category, segmentation, crowd=0, **more):
        area = more.get("area", 200)
        entry = {"image_id": image, "category_id": category, "segmentation": segmentation}
        entry |= {"iscrowd": crowd, "area": area, "id": len(truth["annotations"]) + 1}
        truth["annotations"].append(entry | {"bbox": more.get("bbox", [4, 4, 16, 12])})

    truth["categories"] = [{"id": k, "name": str(k)} for k in (1, 7)]
    for mask in predictions[::2]:  # found exactly
        annotate(mask["image_id"], 7, mask["segmentation"], area=mask["area"], bbox=mask["bbox"])
    for number in SIZES:  # mostly missed
        annotate(number, 1, box(4, 4, 20, 16))
    height, width = SIZES[11]
    crowd = np.zeros((height, width), bool)
    crowd[20:] = True
    annotate(11, 1, encode_mask(crowd), 1, area=int(crowd.sum()), bbox=[0, 20, width, height - 20])
    file.write_text(json.dumps(truth))
    return root, truth, predictions


def run(tiny, root, out, *extra):
    return score(
        [
            *("--dataset=coco", f"--root={root}", f"--checkpoint={tiny}", f"--out={out}"),
            "--task=maskcut",
            *("--size=64", "--samples=20", *extra),
        ]
    )


def by_pycocotools(truth, predictions, kind):
    one_class = copy.deepcopy(truth)
    one_class["categories"] = [{"id": 1, "name": "object"}]
    for annotation in one_class["annotations"]:
        annotation["category_id"] = 1
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = one_class
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(predictions)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_pycocotools(tiny, scored, tmp_path):
    root, truth, predictions = scored
    assert run(tiny, root, tmp_path, "--taus=0.2,0.5", "--layers=0,1") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert set(result["counts"]["without_mask"]) == {
        f"maskcut/layer{layer}/tau{tau}" for layer in ("01", "02") for tau in ("0.2", "0.5")
    }
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = by_pycocotools(truth, predictions, iou_type)
        assert 0.1 < expected[0] < 0.9
        names = [f"maskcut/layer02/tau0.2/{kind}/{ap}" for ap in ("AP", "AP50", "AP75")]
        found = [result["scores"][name] for name in names]
        assert [f["value"] for f in found] == pytest.approx(list(expected), abs=1e-12)
        assert all(0 <= f["low"] <= f["high"] <= 1 for f in found)
    assert result["settings"]["taus"] == [0.2, 0.5]
    assert result["settings"]["bootstrap_samples"]["ap"] == 20
    assert "MaskCut AP by tau" in (tmp_path / "index.html").read_text()


def test_an_annotation_that_is_none_is_said_before_all_work(tiny, scored, tmp_path, capsys):
    root, truth, _ = scored
    file = root / "annotations" / "instances_val2017.json"
    content = file.read_text()
    wrong = truth["annotations"][0] | {"segmentation": {"size": [1, 1], "counts": "~"}}
    file.write_text(json.dumps(truth | {"annotations": [wrong]}))
    try:
        assert run(tiny, root, tmp_path / "out", "--taus=0.2") == 2
    finally:
        file.write_text(content)
    assert "segmentation: expected a run-length code whose runs make up" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_that_fail_leave_the_ground_truth(tiny, scored, tmp_path):
    root, truth, predictions = scored
    name = root / "val2017" / f"{12:012d}.jpg"
    content = name.read_bytes()
    name.write_bytes(content[:100])
    try:
        assert run(tiny, root, tmp_path, "--taus=0.2", "--on-error=skip") == 0
    finally:
        name.write_bytes(content)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert list(result["counts"]["failures"]) == [name.name]
    rest = {
        "images": [image for image in truth["images"] if image["id"] != 12],
        "annotations": [a for a in truth["annotations"] if a["image_id"] != 12],
    }
    expected = by_pycocotools(rest, [p for p in predictions if p["image_id"] != 12], "segm")
    found = result["scores"]["maskcut/layer02/tau0.2/mask/AP"]["value"]
    assert found == pytest.approx(expected[0], abs=1e-12)
