"""The scores of patch k-NN from what is kept of each image, beside the whole confusion matrices."""

import types

import numpy as np
import pytest

from crate_jax.score import patch_knn
from crate_jax.segmentation import patch_knn as segmentation

CLASSES, MOST, IMAGES = 7, 3, 40


@pytest.fixture
def images():
    """Confusion matrices with at most `MOST` true classes, predictions turned by one class."""
    rng = np.random.default_rng(0)
    counts = np.zeros((IMAGES, CLASSES, CLASSES), np.int64)
    for one in counts:
        for true in rng.choice(CLASSES, rng.integers(1, MOST + 1), replace=False):
            one[true] = rng.integers(0, 9, CLASSES)
            one[true, (true + 1) % CLASSES] += 30
    return counts


def test_the_interval_of_many_classes_holds_the_mean():
    """Forty classes, of which thirty are in one image each."""
    rng, counts = np.random.default_rng(0), np.zeros((30, 40, 40), np.int64)
    for index, one in enumerate(counts):
        one[0, 0], one[index, index], one[index, 0] = 900, 40, rng.integers(20, 60)
    task = types.SimpleNamespace(data=types.SimpleNamespace(classes=40), samples=1000, seed=0)
    kept = [patch_knn._compact(one, 2) for one in counts]
    columns = {name: [row[name] for row in kept] for name in kept[0]}
    for estimate in patch_knn.PatchKNN.scores(task, "knn", columns).values():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.high - estimate.low < 0.1


def test_the_interval_holds_the_mean_where_other_images_err_into_a_class():
    """Two hundred classes of one image each, whose pixels are taken for all others too."""
    rng, counts = np.random.default_rng(0), np.zeros((200, 200, 200), np.int64)
    for index, one in enumerate(counts):
        one[index, index] = 20
        np.add.at(one[index], rng.integers(0, 200, 60), 1)
    task = types.SimpleNamespace(data=types.SimpleNamespace(classes=200), samples=300, seed=0)
    kept = [patch_knn._compact(one, 1) for one in counts]
    columns = {name: [row[name] for row in kept] for name in kept[0]}
    estimate = patch_knn.PatchKNN.scores(task, "knn", columns)["knn/miou_identity"]
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value, rel=0.5)


def test_means_are_those_of_the_summed_matrix(images):
    task = types.SimpleNamespace(data=types.SimpleNamespace(classes=CLASSES), samples=2000, seed=0)
    kept = [patch_knn._compact(one, MOST) for one in images]
    columns = {name: [row[name] for row in kept] for name in kept[0]}
    found = patch_knn.PatchKNN.scores(task, "knn", columns)
    rng, whole = np.random.default_rng(1), images.sum(axis=0)
    drawn = [images[rng.integers(0, IMAGES, IMAGES)].sum(axis=0) for _ in range(500)]
    for matched, name in enumerate(("miou_identity", "miou_matched")):
        estimate = found[f"knn/{name}"]
        assert estimate.value == segmentation.miou(whole, matched=bool(matched))
        assigned = segmentation.assignment(whole, matched=bool(matched))
        means = [segmentation.class_ious(one)[np.arange(CLASSES), assigned].mean() for one in drawn]
        assert estimate.low == pytest.approx(np.percentile(means, 2.5), abs=0.02)
        assert estimate.high == pytest.approx(np.percentile(means, 97.5), abs=0.02)
    assert found["knn/miou_matched"].low > found["knn/miou_identity"].high
