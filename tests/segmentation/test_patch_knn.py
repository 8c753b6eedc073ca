"""Patch k-NN segmentation against the public code's outputs, and by sorting everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crate_jax.segmentation import patch_knn

CASES = np.load(Path(__file__).parents[1] / "reference" / "any_vit" / "hummingbird.npz")
CONFIG = json.loads(str(CASES["config"]))
GRID, CLASSES = (CONFIG["grid"],) * 2, CONFIG["classes"]


@pytest.fixture(scope="module")
def train():
    labels = [patch_knn.patch_labels(mask, GRID, CLASSES) for mask in CASES["train_masks"]]
    return CASES["train_features"], np.stack(labels)


def remembered(train, case):
    features, labels = train
    if case == "all":
        return features.reshape(-1, CONFIG["dim"]), labels.reshape(-1, CLASSES)
    chosen = [
        patch_knn.choose(own, 10, uniform)
        for own, uniform in zip(labels, CASES["bounded/uniform"], strict=True)
    ]
    np.testing.assert_array_equal(np.sort(chosen), np.sort(CASES["bounded/sampled_patches"]))
    take = CASES["bounded/sampled_patches"]  # in the public code's order, for `neighbours`
    rows = np.arange(len(take))[:, None]
    return features[rows, take].reshape(-1, CONFIG["dim"]), labels[rows, take].reshape(-1, CLASSES)


@pytest.mark.parametrize("case", ["all", "bounded"])
def test_agrees_with_the_public_code(train, case):
    features, labels = remembered(train, case)
    np.testing.assert_allclose(labels, CASES[f"{case}/label_memory"], atol=1e-6)
    memory = patch_knn.Memory(features, labels, k=CONFIG["neighbours"], temperature=CONFIG["beta"])
    counts = np.zeros((CLASSES, CLASSES), int)
    for index, (query, truth) in enumerate(
        zip(CASES["val_features"], CASES["val_masks"], strict=True)
    ):
        _, entries = memory.nearest(query)
        np.testing.assert_array_equal(entries, CASES[f"{case}/neighbours"][index])
        shares = memory(query)
        np.testing.assert_allclose(shares, CASES[f"{case}/label_hat"][index], atol=1e-5)
        prediction = patch_knn.decide(shares, GRID, truth.shape)
        np.testing.assert_array_equal(prediction, CASES[f"{case}/prediction"][index])
        counts += patch_knn.confusion(prediction, truth, CLASSES)
    np.testing.assert_array_equal(counts, CASES[f"{case}/confusion"])
    for name, matched in (("miou_matched", True), ("miou_identity", False)):
        expected = float(CASES[f"{case}/{name}"])
        assert patch_knn.miou(counts, matched=matched) == pytest.approx(expected, abs=1e-9)


def test_matching_undoes_a_permutation_and_absent_classes_count_as_zero():
    counts = np.array([[0, 5, 0], [4, 0, 0], [0, 0, 0]])
    assert patch_knn.miou(counts, matched=True) == pytest.approx(2 / 3)
    assert patch_knn.miou(counts, matched=False) == 0


def test_void_is_class_0_in_memory_and_nothing_in_the_score():
    labels = np.array([[255, 1], [1, 1]])
    np.testing.assert_allclose(patch_knn.patch_labels(labels, (1, 1), 2), [[0.25, 0.75]])
    assert patch_knn.confusion(np.ones((2, 2), int), labels, 2).tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_and_padding_change_nothing(block, monkeypatch):
    monkeypatch.setattr(patch_knn, "_BLOCK", block)
    monkeypatch.setattr(patch_knn, "_QUERIES", 16)
    rng = np.random.default_rng(0)
    features, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (50, 37))
    memory = patch_knn.Memory(features, np.eye(50, dtype=np.float32), k=6)
    cosines, entries = memory.nearest(queries)
    unit, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (features, queries))
    every = others @ unit.T
    np.testing.assert_array_equal(entries, np.argsort(-every, axis=1)[:, :6])
    np.testing.assert_allclose(cosines, np.sort(every, axis=1)[:, :-7:-1], rtol=1e-5)
    assert memory.bytes > features.nbytes


def test_many_classes_of_which_few_have_a_share():
    """Votes and decisions beside plain sums and interpolations over every class."""
    rng = np.random.default_rng(2)
    grid, size, every = (3, 4), (13, 21), np.arange(30)
    labels = np.zeros((30, 40), np.float32)
    labels[every, rng.choice([7, 12, 33], 30)] = 0.75
    labels[every, rng.choice([5, 39], 30)] = 0.25
    features, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (30, 12))
    memory = patch_knn.Memory(features, labels, k=4, temperature=0.5)
    assert len(memory) == 30
    cosines, entries = memory.nearest(queries)
    weights = np.exp(cosines / 0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    shares = memory(queries)
    np.testing.assert_allclose(shares, (weights[..., None] * labels[entries]).sum(1), atol=1e-6)
    maps = shares.T.reshape(40, *grid)
    for axis, (cells, pixels) in enumerate(zip(grid, size, strict=True), start=1):
        at = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
        maps = np.apply_along_axis(lambda v, x=at: np.interp(x, np.arange(len(v)), v), axis, maps)
    np.testing.assert_array_equal(patch_knn.decide(shares, grid, size), maps.argmax(axis=0))


ON_DEVICES = """
import jax, numpy as np
from crate_jax.segmentation import patch_knn
rng = np.random.default_rng(1)
features, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (30, 9))
labels = np.eye(30, dtype=np.float32)
one = patch_knn.Memory(features, labels, k=4, devices=jax.devices()[:1])
several = patch_knn.Memory(features, labels, k=4)
assert several._features.sharding.num_devices == 4
np.testing.assert_array_equal(one.nearest(queries)[1], several.nearest(queries)[1])
np.testing.assert_allclose(one(queries), several(queries), atol=1e-6)
"""


@pytest.mark.slow
def test_a_memory_divided_among_four_devices_finds_the_same():
    forced = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", ON_DEVICES], env=forced, check=True)


def test_what_is_no_memory_is_refused():
    features = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="more training images"):
        patch_knn.Memory(features, np.ones((3, 2), np.float32), k=4)
    with pytest.raises(ValueError, match="classes in"):
        patch_knn.patch_labels(np.array([[7]]), (1, 1), 3)
    with pytest.raises(ValueError, match="1 of 3 patches"):
        patch_knn.Memory(np.array([[1.0, 2], [np.nan, 1], [0, 1]]), np.ones((3, 2)), k=1)
