"""TokenCut and LOST against the authors' outputs, and against definitions written as loops."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import eigh

from crate_jax.segmentation import discovery

CASES = np.load(Path(__file__).parents[1] / "reference" / "any_vit" / "object_discovery.npz")


def cases(method):
    found = {key.rsplit("/", 1)[0] for key in CASES.files if f"/{method}/" in key}
    return sorted(found)


def inputs(case):
    name, _, parameter = case.split("/")
    grid = tuple(int(side) for side in CASES[f"{name}/grid"])
    return CASES[f"{name}/features"], grid, float(parameter.rsplit("_", 1)[1])


def in_pixels(found, case):
    name = case.split("/")[0]
    size = tuple(int(side) for side in CASES[f"{name}/image_size"])
    return discovery.pixel_box(found.box, int(CASES[f"{name}/patch"]), size)


@pytest.mark.parametrize("case", cases("tokencut"))
def test_tokencut_agrees_with_the_authors(case):
    features, grid, tau = inputs(case)
    found = discovery.tokencut(features, grid, tau)
    np.testing.assert_array_equal(found.mask, CASES[f"{case}/mask"])
    np.testing.assert_array_equal(found.foreground, CASES[f"{case}/foreground"])
    np.testing.assert_array_equal(in_pixels(found, case), CASES[f"{case}/box"])
    assert found.seed in CASES[f"{case}/seed_ties"]
    np.testing.assert_allclose(found.eigenvalues, CASES[f"{case}/eigenvalues"], atol=1e-6)
    expected = CASES[f"{case}/eigenvector"].ravel()
    distance = np.linalg.norm(found.eigenvector - expected) / np.linalg.norm(expected)
    assert distance < 1e-5


@pytest.mark.parametrize("case", cases("lost"))
def test_lost_agrees_with_the_authors(case):
    features, grid, k = inputs(case)
    found = discovery.lost(features, grid, int(k))
    np.testing.assert_array_equal(found.degree, CASES[f"{case}/degree"])
    np.testing.assert_array_equal(found.mask, CASES[f"{case}/mask_lowest_index"])
    np.testing.assert_array_equal(in_pixels(found, case), CASES[f"{case}/box_lowest_index"])
    assert found.seed == CASES[f"{case}/seed_lowest_index"]
    if not CASES[f"{case}/tie_at_cut"]:
        assert set(found.similar) == set(CASES[f"{case}/similar"])
        np.testing.assert_allclose(found.scores, CASES[f"{case}/scores_sum"], rtol=1e-4, atol=1e-4)


def dense_tokencut(features, grid, tau):
    """The six steps as the paper has them, with a dense solver."""
    f = features / np.linalg.norm(features, axis=1, keepdims=True)
    affinity = np.where(f @ f.T > tau, 1.0, 1e-5)
    degrees = np.diag(affinity.sum(axis=1))
    v = eigh(degrees - affinity, degrees)[1][:, 1]
    foreground, seed = v > v.mean(), np.argmax(np.abs(v))
    if not foreground[seed]:
        foreground = ~foreground
    labels = ndimage.label(foreground.reshape(grid))[0]
    return labels == labels.flat[seed]


@pytest.mark.parametrize(("seed", "grid"), [(0, (9, 14)), (1, (13, 10)), (2, (6, 5))])
def test_tokencut_equals_a_dense_solver_on_other_grids(seed, grid):
    rng = np.random.default_rng(seed)
    planted = np.zeros(grid, int)
    planted[1:4, 2:5] = 1
    centres = rng.normal(size=(2, 16)).astype(np.float32)
    noise = rng.normal(scale=0.7, size=(grid[0] * grid[1], 16)).astype(np.float32)
    features = centres[planted.ravel()] + noise
    expected = dense_tokencut(features, grid, 0.2)
    np.testing.assert_array_equal(discovery.tokencut(features, grid).mask, expected)


@pytest.mark.parametrize("seed", [91, 279, 375])
def test_eigenvalues_of_rough_graphs_to_a_millionth(seed):
    """Random graphs whose third eigenvalue stands near the fourth."""
    rng = np.random.default_rng(seed)
    centres, labels = rng.normal(size=(3, 33)), np.repeat(rng.integers(0, 3, 35), 4)
    features = (centres[labels] + 1.2 * rng.normal(size=(140, 33))).astype(np.float32)
    found = discovery.tokencut(features, (10, 14), tau=0.05)
    unit = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    edges = np.where(unit @ unit.T > 0.05, 1, 1e-5)
    degrees = np.diag(edges.sum(axis=1))
    exact = eigh(degrees - edges, degrees, eigvals_only=True, subset_by_index=[1, 2])
    np.testing.assert_allclose(found.eigenvalues, exact, atol=1e-6)


def test_lost_by_loops():
    rng = np.random.default_rng(3)
    features, grid = rng.normal(size=(30, 4)).astype(np.float32), (5, 6)
    gram = features.astype(float) @ features.astype(float).T
    degree = [sum(gram[i, j] > 0 for j in range(30) if j != i) for i in range(30)]
    order = sorted(range(30), key=lambda patch: (degree[patch], patch))
    votes = [patch for patch in order[:7] if gram[order[0], patch] > 0]
    scores = sum(gram[patch] for patch in votes)
    labels = ndimage.label((scores > 0).reshape(grid))[0]
    found = discovery.lost(features, grid, k=7)
    assert found.seed == order[0]
    assert list(found.similar) == votes
    np.testing.assert_array_equal(found.mask, labels == labels.flat[order[0]])


@pytest.mark.parametrize("method", [discovery.tokencut, discovery.lost])
def test_boxes_hold_the_mask(method):
    rng = np.random.default_rng(5)
    found = method(rng.normal(size=(120, 8)).astype(np.float32), (10, 12))
    rows, columns = np.nonzero(found.mask)
    assert list(found.box) == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.mask.flat[found.seed]


def test_features_without_an_object_are_said_to_be_so():
    constant, zero = np.ones((12, 4), np.float32), np.zeros((12, 4), np.float32)
    for found in (
        discovery.tokencut(constant, (3, 4)),
        discovery.tokencut(zero, (3, 4)),
        discovery.lost(zero, (3, 4)),
    ):
        assert found.degenerate
        assert not found.mask.any()
        assert not found.box.any()
    assert not discovery.lost(constant, (3, 4)).degenerate  # all are like the seed: the whole image


def test_pixel_boxes_are_clipped_to_the_image():
    box = discovery.pixel_box(np.array([1, 0, 3, 2]), 16, (30, 40))
    assert list(box) == [16, 0, 40, 30]


@pytest.mark.parametrize("method", [discovery.tokencut, discovery.lost])
def test_what_cannot_be_cut_is_refused(method):
    features = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=r"leave out \[CLS\]"):
        method(features, (3, 5))
    with pytest.raises(ValueError, match="1 of 12 patches"):
        method(np.where(np.arange(12)[:, None] == 3, np.nan, features).astype(np.float32), (3, 4))
    with pytest.raises(ValueError, match="at least 3 patches"):
        method(features[:2], (1, 2))


def test_parameters_outside_their_range_are_refused():
    features = np.ones((12, 4), np.float32)
    with pytest.raises(ValueError, match=r"cosine in \[0, 1\)"):
        discovery.tokencut(features, (3, 4), tau=1.0)
    with pytest.raises(ValueError, match="at least 1 patch"):
        discovery.lost(features, (3, 4), k=0)
