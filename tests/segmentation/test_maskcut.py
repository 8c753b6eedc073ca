"""MaskCut against the authors' outputs and against a dense solver written from the protocol."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import eigh
from skimage import data, transform
from threadpoolctl import threadpool_limits

from crate_jax.segmentation import ncut
from crate_jax.segmentation.maskcut import full_resolution, maskcut, maskcut_batch

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = [
    (28, name, tau)
    for name in ("astronaut", "chelsea", "coffee", "rocket")
    for tau in ("0.15", "0.3")
] + [(60, "astronaut", "0.2"), (60, "chelsea", "0.2")]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The dense solver on two threads beside other processes is many times slower."""
    with threadpool_limits(1, user_api="blas"):
        yield


def iou(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 1.0


def dense_cut(features, tau, alive):
    """Second eigenvector by the generalised dense solver, and both eigenvalues."""
    if alive.sum() < 3:
        return np.ones(2), np.zeros(len(features))
    f = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    affinity = np.where(f @ f.T > tau, 1.0, 1e-5)[np.ix_(alive, alive)]
    degrees = np.diag(affinity.sum(axis=1))
    mu, v = eigh(degrees - affinity, degrees, subset_by_index=[1, 2])
    vector = np.zeros(len(f))
    vector[alive] = v[:, 0] if v[np.argmax(np.abs(v[:, 0])), 0] > 0 else -v[:, 0]
    return mu, vector


def dense_maskcut(features, grid, tau, max_masks=3, corrected=False):
    """protocols.md section 4, step by step; `corrected` per maskcut's docstring."""
    features = np.array(features, np.float32)
    rows, columns = grid
    painted = np.zeros(grid, bool)
    current = np.zeros(grid, bool)
    masks, values, vectors = [], [], []
    for i in range(max_masks):
        features[painted.ravel()] = 0
        alive = ~painted.ravel() if corrected else np.ones(rows * columns, bool)
        mu, v = dense_cut(features, tau, alive)
        foreground = (alive & (v > v[alive].mean() if alive.any() else False)).reshape(grid)
        corners = [foreground[r, c] for r in (0, rows - 1) for c in (0, columns - 1)]
        sign = 1
        if sum(corners) >= 3 or not foreground.flat[np.argmax(np.abs(v))]:
            foreground, sign = ~foreground, -1
        foreground &= alive.reshape(grid)
        seed = np.argmax(np.where(alive, sign * v, -np.inf))
        labels = ndimage.label(foreground)[0]
        proposal = labels == labels.flat[seed]
        small = proposal.sum() <= 0.01 * rows * columns
        if corrected:
            kept = np.zeros(grid, bool) if small else proposal
            painted = painted | proposal
        else:
            drop = i > 0 and (iou(proposal, current) > 0.5 or small)
            kept = current = np.zeros(grid, bool) if drop else proposal
            painted = painted | kept
        masks.append(kept & ~np.any(masks, axis=0) if masks else kept)
        values.append(mu)
        vectors.append(v)
    return np.array(masks), np.array(values), np.array(vectors)


def photograph_features(name, grid, channels, seed=0):
    """Colours and gradients of a photograph at two scales, through one random ReLU layer."""
    image = transform.resize(getattr(data, name)(), (4 * grid[0], 4 * grid[1], 3))
    smooth = [ndimage.gaussian_filter(image, (s, s, 0)) for s in (2, 8)]
    gradients = [np.abs(np.gradient(smooth[0], axis=a)) * 5 for a in (0, 1)]
    maps = np.concatenate([*smooth, *gradients], axis=-1)
    h = maps.reshape(grid[0], 4, grid[1], 4, -1).mean((1, 3)).reshape(grid[0] * grid[1], -1)
    h = (h - h.mean(0)) / h.std(0)
    rng = np.random.default_rng(seed)
    h = np.maximum(h @ rng.normal(size=(h.shape[1], 128)), 0)
    return ((h - h.mean(0)) @ rng.normal(size=(128, channels))).astype(np.float32)


def blobs(grid, centres, noise, seed, channels=24):
    """Regions around random centres, each with its own direction, plus noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
    at = rng.random((centres, 2)) * grid
    nearest = np.argmin((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2, axis=1)
    directions = rng.normal(size=(centres, channels))
    return (directions[nearest] + noise * rng.normal(size=(len(y), channels))).astype(np.float32)


def assert_same(result, masks, eigenvalues, eigenvectors, least_iou=1.0):
    for i in range(len(masks)):
        assert iou(result.masks[i], masks[i]) >= least_iou, f"round {i}"
    np.testing.assert_allclose(result.eigenvalues, eigenvalues, atol=1e-5)
    largest = np.abs(eigenvectors).max(axis=1)
    difference = np.abs(result.eigenvectors - eigenvectors).max(axis=1) / largest
    # The vectors' error is residual / gap, and the next rounds see the same masks.
    assert difference.max() < 2e-3, difference


@pytest.mark.parametrize(("grid", "name", "tau"), CASES)
def test_equals_the_authors_masks(grid, name, tau):
    with np.load(REFERENCE / f"maskcut_{grid}.npz") as reference:
        expected = {
            key: reference[f"{name}/tau_{tau}/{key}"]
            for key in ("masks", "eigenvalues", "eigenvectors")
        }
        result = maskcut(reference[f"{name}/features"], (grid, grid), float(tau))
    assert_same(result, **expected)
    assert not result.degenerate.any()
    assert result.dense_solves == 0


@pytest.mark.parametrize("tau", ["0.15", "0.3"])
def test_device_path_equals_the_authors_masks(tau):
    names = ("astronaut", "chelsea", "coffee", "rocket")
    with np.load(REFERENCE / "maskcut_28.npz") as reference:
        features = jnp.stack([jnp.asarray(reference[f"{n}/features"]) for n in names])
        batch = maskcut_batch(features, (28, 28), float(tau), where="device")
        for i, name in enumerate(names):
            keys = ("masks", "eigenvalues", "eigenvectors")
            expected = {key: reference[f"{name}/tau_{tau}/{key}"] for key in keys}
            assert_same(batch[i], **expected)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (7, 13), (12, 20), (1, 90), (61, 1), (3, 3)])
@pytest.mark.parametrize("tau", [0.0, 0.15, 0.45])
def test_equals_the_dense_solver_on_regions(grid, tau, corrected):
    features = blobs(grid, centres=6, noise=0.7, seed=grid[1])
    result = maskcut(features, grid, tau, corrected=corrected)
    expected = dense_maskcut(features, grid, tau, corrected=corrected)
    # Where a flag says that rounding decides, only the rounds before it are comparable.
    doubtful = result.degenerate | result.ambiguous | result.tied
    rounds = int(np.argmax(doubtful)) if doubtful.any() else 3
    for i in range(rounds):
        assert iou(result.masks[i], expected[0][i]) == 1
        np.testing.assert_allclose(result.eigenvalues[i], expected[1][i], atol=1e-5)
        vector = expected[2][i]
        assert np.abs(result.eigenvectors[i] - vector).max() < 2e-3 * np.abs(vector).max()


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
@pytest.mark.parametrize(("channels", "tau"), [(32, 0.15), (768, 0.3)])
def test_equals_the_dense_solver_on_photographs(name, channels, tau):
    grid = (20, 26)
    features = photograph_features(name, grid, channels)
    for corrected in (False, True):
        result = maskcut(features, grid, tau, corrected=corrected)
        expected = dense_maskcut(features, grid, tau, corrected=corrected)
        assert not (result.ambiguous | result.tied | result.degenerate).any()
        assert_same(result, *expected, least_iou=0.99)


def test_host_and_device_agree_in_both_modes():
    grid = (10, 14)
    features = np.stack([blobs(grid, 5, 0.8, seed) for seed in range(8)])
    for corrected in (False, True):
        host = maskcut_batch(features, grid, 0.1, corrected=corrected, where="host")
        device = maskcut_batch(features, grid, 0.1, corrected=corrected, where="device")
        np.testing.assert_allclose(host.eigenvalues, device.eigenvalues, atol=1e-5)
        np.testing.assert_array_equal(host.tied, device.tied)
        decided = ~host.tied.any(axis=1)
        assert decided.sum() >= 5
        np.testing.assert_array_equal(host.masks[decided], device.masks[decided])
        for i, image in enumerate(features):
            alone = maskcut(image, grid, 0.1, corrected=corrected)
            np.testing.assert_array_equal(alone.masks, host[i].masks)


def test_eigenvectors_solve_the_generalised_problem():
    """(D - A) v = mu D v with v^T D v = 1, checked on the affinity itself."""
    grid, tau = (12, 18), 0.2
    features = photograph_features("chelsea", grid, 64)
    result = maskcut(features, grid, tau, max_masks=1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    a = np.where(unit @ unit.T > tau, 1.0, 1e-5)
    d = a.sum(axis=1)
    mu, v = result.eigenvalues[0, 0], result.eigenvectors[0].astype(float)
    assert v @ (d * v) == pytest.approx(1, abs=1e-5)
    assert v @ d == pytest.approx(0, abs=1e-4)
    residual = (d * v - a @ v - mu * d * v) / np.sqrt(d)
    assert np.linalg.norm(residual) < 1e-4 * result.confidence[0] + 1e-5
    assert v[np.argmax(np.abs(v))] > 0


def test_a_gap_below_float32_is_resolved_in_double():
    """Three unconnected groups of nearly equal size: mu_3 - mu_2 of about 1e-6."""
    sizes = (150, 149, 145)
    features = np.repeat(np.eye(3, dtype=np.float32), sizes, axis=0)
    grid = (sum(sizes), 1)
    result = maskcut(features, grid, 0.2, max_masks=1)
    mu, v = dense_cut(features, 0.2, np.ones(sum(sizes), bool))
    np.testing.assert_allclose(result.eigenvalues[0], mu, rtol=1e-4)
    assert 0 < result.confidence[0] < 1e-5
    assert np.abs(result.eigenvectors[0] - v).max() < 1e-3 * np.abs(v).max()


def test_dense_fallback_is_counted_and_exact(monkeypatch):
    grid = (10, 14)
    features = blobs(grid, 5, 0.8, 0)
    expected = maskcut(features, grid, 0.1)
    monkeypatch.setattr(ncut, "_MAX_PASSES", 1)
    result = maskcut(features, grid, 0.1)
    assert result.dense_solves > 0
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_allclose(result.eigenvalues, expected.eigenvalues, atol=1e-6)


def test_a_dropped_mask_returns_as_published_and_not_when_corrected():
    """The quirk seen in the reference (chelsea at 60: 1724, 0, 845 patches)."""
    with np.load(REFERENCE / "maskcut_28.npz") as reference:
        features = reference["astronaut/features"]
    published = maskcut(features, (28, 28), 0.3)
    assert published.overlapping.tolist() == [False, True, False]
    assert published.masks.any(axis=(1, 2)).tolist() == [True, False, True]
    np.testing.assert_array_equal(published.eigenvectors[1], published.eigenvectors[2])
    corrected = maskcut(features, (28, 28), 0.3, corrected=True)
    assert corrected.masks.any(axis=(1, 2)).all()
    assert corrected.masks.sum(axis=0).max() == 1


def test_full_resolution_of_a_half_plane():
    mask = np.zeros((1, 4, 6), bool)
    mask[0, :, :3] = True
    out = full_resolution(mask, (40, 30), patch_size=8)
    assert out.shape == (1, 40, 30)
    np.testing.assert_array_equal(out[0], np.broadcast_to(np.arange(30) < 15, (40, 30)))
    assert not full_resolution(np.zeros((2, 4, 6), bool), (9, 5)).any()
    same = np.random.default_rng(0).random((5, 7)) > 0.5
    np.testing.assert_array_equal(full_resolution(same, (5, 7), patch_size=1), same)
    with pytest.raises(ValueError, match="positive"):
        full_resolution(same, (0, 7))
