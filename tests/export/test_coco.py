"""COCO JSON: read back by pycocotools, right sizes, tight boxes, whole files."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from crate_jax.export import coco
from crate_jax.segmentation import scoring


@pytest.fixture
def masks():
    """Not square: exchanged sides would show."""
    masks = np.zeros((3, 20, 33), bool)
    masks[0, 2:9, 5:30] = True
    masks[0, 4, 6] = False
    masks[2, 15, 32] = True
    return masks


def quiet_coco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def test_masks_come_back_as_they_were(masks):
    for mask in masks:
        code = coco.encode_mask(mask)
        assert code["size"] == [20, 33]
        assert json.loads(json.dumps(code)) == code
        np.testing.assert_array_equal(coco.decode_mask(code), mask)


def test_results_have_tight_boxes_and_leave_empty_masks_out(masks):
    first, last = coco.results(7, masks, scores=[0.9, 0.5, 0.25])
    assert first["bbox"] == [5, 2, 25, 7]
    assert first["area"] == 25 * 7 - 1
    assert last["bbox"] == [32, 15, 1, 1]
    assert [first["score"], last["score"]] == [0.9, 0.25]
    assert {r["image_id"] for r in (first, last)} == {7}
    assert coco.results(7, masks)[0]["score"] == 1.0


def test_a_written_data_set_is_read_by_pycocotools(tmp_path, masks):
    image = {"id": 42, "height": 20, "width": 33, "file_name": "a.jpg"}
    found = coco.results(42, masks)
    path = coco.write_json(tmp_path / "new" / "truth.json", coco.dataset([image], found))
    truth = quiet_coco(str(path))
    annotations = truth.loadAnns(truth.getAnnIds(imgIds=42))
    assert [a["id"] for a in annotations] == [1, 2]
    np.testing.assert_array_equal(truth.annToMask(annotations[0]), masks[0])
    results_path = coco.write_json(tmp_path / "results.json", found)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = truth.loadRes(str(results_path))
    assert len(loaded.anns) == 2
    scores = scoring.coco_ap(json.loads(path.read_text()), json.loads(results_path.read_text()))
    assert scores["mask/AP"] == pytest.approx(1)


def test_data_set_refuses_what_does_not_belong_together(masks):
    found = coco.results(1, masks)
    exchanged = {"id": 1, "height": 33, "width": 20}
    with pytest.raises(ValueError, match=r"\[33, 20\], got \[20, 33\]"):
        coco.dataset([exchanged], found)
    with pytest.raises(ValueError, match="its image 1"):
        coco.dataset([], found)
    with pytest.raises(ValueError, match="each id once, got 1 twice"):
        coco.dataset([exchanged, exchanged], [])
    with pytest.raises(ValueError, match="width"):
        coco.dataset([{"id": 1, "height": 3}], [])


def test_errors_say_what_is_expected(masks):
    with pytest.raises(ValueError, match="threshold first"):
        coco.encode_mask(masks[0].astype(float))
    with pytest.raises(ValueError, match="3 masks, got 1"):
        coco.results(1, masks, scores=[1.0])
