"""Saliency against the two public metric codes' outputs, and by hand."""

from pathlib import Path

import numpy as np
import pytest

from crate_jax.segmentation import saliency

CASES = np.load(Path(__file__).parents[1] / "reference" / "any_vit" / "saliency.npz")
FOUND = {"iou": "iou", "accuracy": "accuracy", "mae": "mae"}
FOUND |= {"f_0.5": "f_measure_0_5", "f_adaptive": "f_mean_adaptive"}


@pytest.fixture(scope="module")
def measured():
    return [
        saliency.measure(CASES[f"{pair}/prediction"], CASES[f"{pair}/ground_truth"])
        for pair in range(5)
    ]


@pytest.mark.parametrize("pair", range(5))
def test_single_values_agree_with_both_codes(measured, pair):
    values = measured[pair].values
    for name in ("iou", "accuracy"):
        expected = CASES[f"{pair}/tokencut/{name}"]
        assert values[f"tokencut/{name}"] == pytest.approx(expected, abs=1e-6)
    for ours, theirs in FOUND.items():
        expected = CASES[f"{pair}/found/{theirs}"]
        assert values[f"found/{ours}"] == pytest.approx(expected, abs=1e-6), ours
    expected = CASES[f"{pair}/found/s_measure"]
    assert values["found/s_measure"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pair", range(4))  # the last one's hang on a threshold's last bit
def test_curves_agree_with_both_codes(measured, pair):
    curves = measured[pair]
    for ours, name in ((curves.precision, "precision"), (curves.recall, "recall")):
        np.testing.assert_allclose(ours["tokencut"], CASES[f"{pair}/tokencut/{name}"], atol=1e-6)
    np.testing.assert_allclose(curves.f["found"], CASES[f"{pair}/found/f_by_threshold"], atol=1e-6)


def test_maxima_agree_with_both_codes_and_both_crossings(measured):
    for pair, image in enumerate(measured):
        expected = CASES[f"{pair}/tokencut/max_f_of_this_image_alone"]
        assert image.f["tokencut"].max() == pytest.approx(expected, abs=1e-6)
        assert image.f["found"].max() == pytest.approx(CASES[f"{pair}/found/f_max"], abs=1e-6)
    found = saliency.estimates(measured, samples=50)
    for name, key in {
        "tokencut/max_f_of_set": "dataset/tokencut/max_f",
        "found/max_f_of_image": "dataset/found/f_max",
        "tokencut/max_f_of_image": "dataset/derived/max_f_beta2_0_3_per_image",
        "found/max_f_of_set": "dataset/derived/max_f_beta2_0_09_threshold_shared",
        "tokencut/iou": "dataset/tokencut/iou",
        "found/iou": "dataset/found/iou",
        "found/s_measure": "dataset/found/s_measure",
    }.items():
        assert found[name].value == pytest.approx(CASES[key], abs=1e-6), name
        assert found[name].low <= found[name].value <= found[name].high


def test_eight_bits_are_compared_as_whole_numbers():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    truth = levels > 99
    image = saliency.measure(levels, truth)
    # Above threshold i / 255 lie the levels i + 1 .. 255.
    expected = np.minimum(1, 156 / (255 - np.arange(255)))
    np.testing.assert_allclose(image.precision["tokencut"], expected)
    assert image.f["tokencut"].argmax() == 99


def test_empty_masks_by_each_code():
    nothing, something = np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8)
    both = saliency.measure(nothing, nothing).values
    assert np.isnan(both["tokencut/iou"])
    assert both["found/iou"] == 0
    missed = saliency.measure(nothing, something)
    assert missed.precision["tokencut"][0] == 1
    assert missed.precision["selfmask"][0] == 0
    assert missed.values["found/accuracy"] == 1  # 7 is not 255
    assert missed.values["selfmask/accuracy"] == 0
    with_one = saliency.estimates([saliency.measure(nothing, nothing), missed], samples=10)
    assert with_one["tokencut/iou"].value == 0


def test_other_types_and_shapes_are_refused(types_unchecked):
    truth = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="scale the map first"):
        saliency.measure(np.full((4, 4), 1.5), truth)
    with pytest.raises(ValueError, match="own size"):
        saliency.measure(np.zeros((4, 5)), truth)
    with pytest.raises(ValueError, match="bool or uint8"):
        saliency.measure(truth, np.zeros((4, 4)))
