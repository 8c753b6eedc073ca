"""Scores against hand counts, against upsampled masks, and against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as rle

from crate_jax.segmentation import attention, average_precision, scoring


def box(height, width, top, left, bottom, right):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


# -- IoU --------------------------------------------------------------------------------------


def test_iou_by_hand():
    target = box(4, 4, 0, 0, 2, 4)  # 8 pixels
    prediction = box(4, 4, 1, 0, 3, 4)  # 8 pixels, 4 of them shared
    assert scoring.iou(prediction, target) == pytest.approx(4 / 12)
    void = box(4, 4, 2, 0, 3, 4)  # a row of the prediction alone: leaves the union
    assert scoring.iou(prediction, target, void) == pytest.approx(4 / 8)
    void = box(4, 4, 1, 0, 2, 4)  # the shared row leaves both
    assert scoring.iou(prediction, target, void) == 0


def test_iou_conventions_for_empty_masks():
    empty, some = np.zeros((3, 3), bool), box(3, 3, 0, 0, 2, 2)
    assert scoring.iou(empty, empty) == 1
    assert scoring.iou(some, empty) == 0
    assert scoring.iou(empty, some) == 0
    assert scoring.iou(some, some, void=np.ones((3, 3), bool)) == 1
    broadcast = scoring.iou(np.stack([empty, some])[:, None], some[None])
    np.testing.assert_array_equal(broadcast, [[0], [1]])


def test_class_counts_are_the_transpose_of_upsampling():
    """At any size, void left out, absent classes not among them."""
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 3, 7, 255], size=(11, 14), p=[0.4, 0.2, 0.2, 0.2])
    keep = rng.random((2, 3, 12)) < 0.5
    up = np.asarray(attention.upsample(keep, (3, 4), labels.shape))
    classes, counts = scoring.class_counts(labels, (3, 4))
    assert classes.tolist() == [0, 3, 7]
    for label, cells in zip(classes, counts, strict=True):
        np.testing.assert_array_equal(keep @ cells, (up & (labels == label)).sum((-2, -1)))
    assert scoring.class_counts(np.full((4, 4), 255), (2, 2))[1].shape == (0, 4)


# -- baselines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((4, 4), 0.5, 4), ((5, 3), 0.5, 6), ((4, 6), 1, 24), ((3, 3), 0, 0)],
)
def test_centre_box_has_the_size_it_says(size, side, expected):
    inside = scoring.centre_box(size, side)
    assert inside.shape == size
    assert inside.sum() == expected


# -- intervals --------------------------------------------------------------------------------


def test_bootstrap_interval_is_that_of_the_normal_theory_for_many_images():
    values = np.random.default_rng(0).normal(0.3, 0.1, size=(2, 500))
    low, high = scoring.bootstrap_interval(values)
    half = 1.96 * values.std(-1) / np.sqrt(500)
    np.testing.assert_allclose(low, values.mean(-1) - half, atol=4e-4)
    np.testing.assert_allclose(high, values.mean(-1) + half, atol=4e-4)


def test_bootstrap_interval_equals_plain_resampling():
    """The counts give the means of the very draws that the generator makes."""
    values = np.random.default_rng(1).random(7)
    drawn = np.random.default_rng(3).integers(7, size=(200, 7))
    expected = np.percentile(values[drawn].mean(1), [5, 95])
    np.testing.assert_allclose(
        scoring.bootstrap_interval(values, seed=3, samples=200, level=0.9), expected
    )


def test_bootstrap_interval_is_deterministic_and_handles_the_edges():
    values = np.random.default_rng(1).random(20)
    assert scoring.bootstrap_interval(values) == scoring.bootstrap_interval(values)
    assert scoring.bootstrap_interval(values) != scoring.bootstrap_interval(values, seed=1)
    assert scoring.bootstrap_interval(np.array([0.25])) == (0.25, 0.25)
    both = scoring.bootstrap_interval(np.array([[1.0, np.nan], [1.0, 1.0]]))
    np.testing.assert_array_equal(both, [[np.nan, 1], [np.nan, 1]])
    with pytest.raises(ValueError, match="at least one image"):
        scoring.bootstrap_interval(np.array([]))


# -- COCO average precision -------------------------------------------------------------------


def coco_case(objects, found, size=(20, 20)):
    """objects: {image_id: masks}; found: [(image_id, mask)]."""

    def encoded(mask):
        return rle.encode(np.asfortranarray(mask.astype(np.uint8)))

    annotations = []
    for image_id, masks in objects.items():
        for mask in masks:
            segmentation = encoded(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 17 + len(annotations),
                    "iscrowd": 0,
                    "area": float(mask.sum()),
                    "bbox": rle.toBbox(segmentation).tolist(),
                    "segmentation": segmentation,
                }
            )
    images = [{"id": i, "height": size[0], "width": size[1]} for i in objects]
    categories = [{"id": a["category_id"], "name": str(a["id"])} for a in annotations]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, [{"image_id": i, "segmentation": encoded(mask)} for i, mask in found]


def test_coco_ap_of_perfect_and_of_no_predictions():
    one, two = box(20, 20, 2, 2, 8, 9), box(20, 20, 10, 3, 17, 19)
    truth, perfect = coco_case({7: [one, two], 9: [one]}, [(7, two), (9, one), (7, one)])
    result = scoring.coco_ap(truth, perfect)
    assert result == {
        f"{kind}/{name}": pytest.approx(1)
        for kind in ("box", "mask")
        for name in ("AP", "AP50", "AP75", "AR100")
    }
    # pycocotools takes a match with annotation 0 for no match; ours are numbered from 1.
    truth["annotations"][0]["id"] = 0
    assert scoring.coco_ap(truth, perfect) == result
    assert set(scoring.coco_ap(truth, []).values()) == {0.0}
    assert all(np.isnan(v) for v in scoring.coco_ap({**truth, "annotations": []}, []).values())


def test_coco_ap_by_hand():
    """IoU 0.6 on a box of 10 x 10: found at thresholds .50, .55 and .60 of ten."""
    whole, part = box(20, 20, 0, 0, 10, 10), box(20, 20, 0, 0, 10, 6)
    truth, found = coco_case({1: [whole]}, [(1, part)])
    result = scoring.coco_ap(truth, found)
    assert result["box/AP"] == pytest.approx(0.3)
    assert result["mask/AP50"] == pytest.approx(1)
    assert result["mask/AP75"] == 0
    # The same tight box, half of the mask: boxes are taken from masks and masks judged as masks.
    checkered = whole & (np.indices((20, 20)).sum(0) % 2 == 0)
    checkered[0, 0] = checkered[9, 9] = True
    truth, found = coco_case({1: [whole]}, [(1, checkered)])
    found[0]["bbox"] = [0, 0, 1, 1]
    result = scoring.coco_ap(truth, found)
    assert result["box/AP"] == pytest.approx(1)
    assert result["mask/AP"] == pytest.approx(0.1)  # IoU exactly 0.5


def test_coco_ap_counts_false_positives_in_order():
    """A false one before the true one: precision 1/2 at every recall; after it: 1."""
    thing, other = box(20, 20, 0, 0, 5, 5), box(20, 20, 10, 10, 15, 15)
    truth, found = coco_case({1: [thing]}, [(1, other), (1, thing)])
    assert scoring.coco_ap(truth, found)["mask/AP"] == pytest.approx(0.5)
    assert scoring.coco_ap(truth, found[::-1])["mask/AP"] == pytest.approx(1)
    found = [found[0] | {"score": 0.1}, found[1] | {"score": 0.9}]
    assert scoring.coco_ap(truth, found)["mask/AP"] == pytest.approx(0.5)
    assert scoring.coco_ap(truth, found, keep_scores=True)["mask/AP"] == pytest.approx(1)


def random_coco_case(images=25):
    rng = np.random.default_rng(0)
    objects, found = {}, []
    for image in range(images):
        masks = []
        for _ in range(rng.integers(0, 4)):
            top, left = rng.integers(0, 10, 2)
            high, wide = rng.integers(3, 10, 2)
            masks.append(box(20, 20, top, left, top + high, left + wide))
        objects[image * 3 + 1] = masks
        for mask in masks:
            if rng.random() < 0.8:
                found.append((image * 3 + 1, np.roll(mask, rng.integers(-1, 2, 2), (0, 1))))
        if rng.random() < 0.5:
            found.append((image * 3 + 1, rng.random((20, 20)) < 0.2))
    return coco_case(objects, found)


def test_bootstrap_counts_matches_as_pycocotools_does(monkeypatch):
    """Every image drawn once: the interval closes on the score itself."""
    truth, found = random_coco_case()

    class EachOnce:
        def integers(self, high, size):
            return np.arange(size) % high

    monkeypatch.setattr(average_precision.np.random, "default_rng", lambda seed: EachOnce())
    result = scoring.coco_ap(truth, found, samples=1)
    for kind in ("box", "mask"):
        for name in ("AP", "AP50", "AP75"):
            assert 0 < result[f"{kind}/{name}"] < 1
            for end in ("low", "high"):
                assert result[f"{kind}/{name}/{end}"] == pytest.approx(result[f"{kind}/{name}"])


def test_bootstrap_counts_an_image_drawn_twice_as_two_images(monkeypatch):
    """Against pycocotools on a data set in which the images drawn are there as often."""
    rng = np.random.default_rng(1)
    truth, found = random_coco_case(12)
    found = [f | {"score": float(rng.choice([0.5, 0.75]))} for f in found]
    drawn = np.sort(rng.integers(12, size=12))
    assert len(set(drawn)) < 10

    class Drawn:
        def integers(self, high, size):
            return drawn

    ids = [image["id"] for image in truth["images"]]
    repeated, again = {"images": [], "annotations": []}, []
    for new, old in enumerate(ids[place] for place in drawn):
        repeated["images"].append({"id": new, "height": 20, "width": 20})
        for copies, given in ((repeated["annotations"], truth["annotations"]), (again, found)):
            copies.extend(a | {"image_id": new} for a in given if a["image_id"] == old)
    for keep_scores in (False, True):
        want = scoring.coco_ap(repeated, again, keep_scores=keep_scores)
        with monkeypatch.context() as patch:
            patch.setattr(average_precision.np.random, "default_rng", lambda seed: Drawn())
            got = scoring.coco_ap(truth, found, keep_scores=keep_scores, samples=1)
        for name in ("box/AP", "box/AP50", "mask/AP", "mask/AP75"):
            assert got[f"{name}/low"] == pytest.approx(want[name]), name


def test_bootstrap_interval_of_ap_holds_the_score_and_is_deterministic():
    truth, found = random_coco_case()
    result = scoring.coco_ap(truth, found, samples=50)
    assert result["mask/AP/low"] < result["mask/AP"] < result["mask/AP/high"]
    assert result == scoring.coco_ap(truth, found, samples=50)


def test_coco_ap_refuses_unknown_images():
    truth, found = coco_case({1: [box(9, 9, 0, 0, 5, 5)]}, [(2, box(9, 9, 0, 0, 5, 5))], (9, 9))
    with pytest.raises(ValueError, match="the first 2"):
        scoring.coco_ap(truth, found)
    with pytest.raises(ValueError, match=r"prediction 0, of image 1: segmentation: expected a run"):
        scoring.coco_ap(truth, [{"image_id": 1, "bbox": [0, 0, 1, 1]}])
    truth["annotations"][0]["image_id"] = 7
    with pytest.raises(ValueError, match=r"annotation 1: expected one of the 1 image ids, got 7"):
        scoring.coco_ap(truth, [])
    with pytest.raises(ValueError, match="id, height and width, got one without 'width'"):
        scoring.coco_ap({"images": [{"id": 1, "height": 9}], "annotations": []}, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("bbox", value) for value in (None, [1, 2], "abcd", [0, 0, 1, float("nan")])),
        *(("area", value) for value in (None, "1", -1, float("nan"), float("inf"))),
        *(("iscrowd", value) for value in (2, "x", None, [1])),
        *(("image_id", value) for value in ([1], None, "1")),
    ],
)
def test_a_field_that_pycocotools_would_fail_at_is_named(field, value):
    truth, _ = coco_case({1: [box(9, 9, 0, 0, 5, 5)]}, [], (9, 9))
    truth["annotations"][0] |= {"id": 5, field: value}
    with pytest.raises(ValueError, match=r"annotation (5|1 in order): .*expected"):
        scoring.coco_ap(truth, [])


@pytest.mark.parametrize("value", [None, 3, "x", []])
def test_an_annotation_that_is_none_is_counted(value):
    truth, _ = coco_case({1: [box(9, 9, 0, 0, 5, 5)]}, [], (9, 9))
    truth["annotations"].append(value)
    with pytest.raises(ValueError, match="annotation 2 in order: expected an object with an image"):
        scoring.coco_ap(truth, [])


def test_coco_ap_takes_polygons_and_plain_run_lengths_of_predictions():
    truth, _ = coco_case({1: [box(20, 20, 2, 3, 8, 13)]}, [])
    polygons = [[3, 2, 13, 2, 13, 8, 3, 8]]
    counts = [3 * 20 + 2, *([6, 14] * 9), 6, 400 - 12 * 20 - 8]
    for segmentation in (polygons, {"size": [20, 20], "counts": counts}):
        scores = scoring.coco_ap(truth, [{"image_id": 1, "segmentation": segmentation}])
        assert scores["mask/AP"] == scores["box/AP"] == pytest.approx(1)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize("odd", [5, None, {}, {"image_id": [1]}, {"image_id": 1, "score": "high"}])
def test_coco_ap_refuses_what_is_no_prediction(odd):
    truth, _ = coco_case({1: [box(20, 20, 2, 3, 8, 13)]}, [])
    with pytest.raises(ValueError, match="predictions: expected COCO results, each an object with"):
        scoring.coco_ap(truth, [odd], keep_scores=True)


@pytest.mark.usefixtures("types_unchecked")
def test_errors_say_what_is_expected():
    with pytest.raises(ValueError, match="one height and width"):
        scoring.iou(np.ones((2, 2), bool), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="labels"):
        scoring.class_counts(np.ones((4, 4, 3)), (2, 2))
    with pytest.raises(ValueError, match="side: expected"):
        scoring.centre_box((4, 4), 50)
