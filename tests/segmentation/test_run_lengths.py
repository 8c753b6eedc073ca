"""Segmentations against pycocotools' own codes, and what would hang or end it."""

import numpy as np
import pytest
from pycocotools import mask as rle

from crate_jax.segmentation import run_lengths

SIZE = (17, 23)


def masks():
    rng = np.random.default_rng(0)
    yield np.zeros(SIZE, bool)
    yield np.ones(SIZE, bool)
    for share in (0.02, 0.5, 0.98):
        yield rng.random(SIZE) < share
    yield np.indices((300, 400)).sum(0) % 211 < 100


@pytest.mark.parametrize("mask", list(masks()))
def test_codes_come_through_whole(mask):
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *edges, flat.size])
    np.testing.assert_array_equal(run_lengths._runs(code["counts"]), runs)
    text = {"size": code["size"], "counts": code["counts"].decode()}
    for given in (code, text, {"size": list(mask.shape), "counts": runs.tolist()}):
        assert run_lengths.checked(given, mask.shape, "mask") == code


def test_polygons_are_joined():
    polygons = [[2, 3, 10, 3, 10, 9, 2, 9], [8, 1, 24, 1, 24, 5]]  # the second one over the edge
    code = run_lengths.checked(polygons, SIZE, "mask")
    assert code == rle.merge(rle.frPyObjects(polygons, *SIZE))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [17, 23], "counts": "garbage~~~"},
        {"size": [17, 23], "counts": "o" * 40},  # every character says that another one follows
        {"size": [17, 23], "counts": ""},
        {"size": [17, 23], "counts": "\u00e9"},
        {"size": [23, 17], "counts": [0, 391]},
        {"size": [17, 23], "counts": [0, 390]},
        {"size": [17, 23], "counts": [-9, 400]},
        {"size": [17, 23], "counts": [0, 10**30]},
        {"size": [17, 23], "counts": [0, "x"]},
        {"size": [17, 23]},
        {"size": 4, "counts": [391]},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, 5, 0, float("nan"), 5]],
        [[0, 0, 5, 0]],
        [[0, 0, 5, 0, 5]],
        [["a", 0, 5, 0, 5, 5]],
        [5, 5],
        [],
        None,
        "text",
        3,
    ],
    ids=str,
)
def test_what_is_none_is_an_error_before_pycocotools_sees_it(segmentation):
    with pytest.raises(ValueError, match=r"^annotation 3: expected"):
        run_lengths.checked(segmentation, SIZE, "annotation 3")


def test_an_image_without_pixels():
    with pytest.raises(ValueError, match="expected an image of 1 to"):
        run_lengths.checked({"size": [0, 4], "counts": []}, (0, 4), "annotation 3")
