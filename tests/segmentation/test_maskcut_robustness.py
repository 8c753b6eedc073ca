"""Graphs without a cut, ties, and input that is no input."""

import numpy as np
import pytest

from crate_jax.segmentation.maskcut import maskcut, maskcut_batch

GRID = (8, 9)
N = 72


@pytest.fixture(params=["host", "device"])
def cut(request):
    def run(features, tau=0.15, **options):
        batch = maskcut_batch(
            np.asarray(features, np.float32)[None], GRID, tau, where=request.param, **options
        )
        return batch[0]

    return run


def isolated(count=N):
    return np.eye(N)[:count]


@pytest.mark.parametrize(
    ("features", "mu"),
    [
        (np.ones((N, N)), 1.0),
        (np.random.default_rng(0).normal(size=(N, N)) + 10, 1.0),  # all cosines above tau
        (np.zeros((N, N)), 1.0),
        (isolated(), 1e-5 * N / (1 + 1e-5 * (N - 1))),
    ],
    ids=["constant", "above tau", "zero", "isolated"],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_a_graph_without_a_cut_gives_no_mask(cut, features, mu, corrected):
    result = cut(features, corrected=corrected)
    assert result.degenerate.all()
    assert not result.masks.any()
    np.testing.assert_allclose(result.eigenvalues, mu, atol=1e-9)
    np.testing.assert_array_equal(result.confidence, 0)
    assert not result.eigenvectors.any()
    assert result.dense_solves == 0


def two_halves(noise=0.0):
    """Left and right half point apart; tied by symmetry unless noise separates them."""
    features = np.zeros((*GRID, N))
    features[:, :4, 0] = 1
    features[:, 4:, 1] = 1
    features = features.reshape(N, N)
    return features + noise * np.random.default_rng(0).normal(size=features.shape)


def test_one_isolated_patch_is_a_tiny_mask(cut):
    features = np.ones((N, N))
    features[30] = -1
    result = cut(features, tau=0.5)
    expected = np.zeros(N, bool)
    expected[30] = True
    # 1 of 72 patches is above 1 %, so it is tiny on a larger grid alone: see below.
    np.testing.assert_array_equal(result.masks[0].ravel(), expected)


def test_the_first_mask_has_no_size_filter_as_published():
    grid = (11, 12)
    features = np.random.default_rng(0).normal(size=(132, 8)) * 0.1 + 1
    features[40] = -1
    published = maskcut(features, grid, 0.5)
    assert published.masks[0].sum() == 1
    assert published.tiny[0]
    assert not maskcut(features, grid, 0.5, corrected=True).masks[0].any()


def test_several_isolated_patches_are_tied_and_the_first_is_taken(cut):
    features = np.ones((N, N))
    features[[50, 20, 33]] = -2 * np.eye(N)[:3]
    result = cut(features, tau=0.5, max_masks=1)
    assert result.tied[0] or result.ambiguous[0]
    assert result.masks[0].sum() >= 1
    assert np.isfinite(result.eigenvectors).all()


def test_equal_groups_are_ambiguous(cut):
    """Three groups of 24: mu_2 = mu_3 by symmetry."""
    features = np.repeat(np.eye(N)[:3], 24, axis=0)
    result = cut(features, max_masks=1)
    assert result.ambiguous[0]
    assert result.confidence[0] < 1e-6
    assert np.isfinite(result.eigenvectors).all()


def test_duplicated_patches_change_nothing_but_ties(cut):
    """Every patch twice, side by side: the mask is made of whole pairs."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), [10, 12, 8, 6])
    features = np.repeat(rng.normal(size=(4, N))[groups] + 0.3 * rng.normal(size=(36, N)), 2, 0)
    result = cut(features)
    pairs = result.masks.reshape(3, 36, 2)
    assert result.masks[0].any()
    vectors = result.eigenvectors.reshape(3, 36, 2)
    np.testing.assert_allclose(vectors[..., 0], vectors[..., 1], rtol=1e-2, atol=1e-4)
    assert pairs.any()


def test_two_halves(cut):
    result = cut(two_halves(), max_masks=1)
    left = np.zeros(GRID, bool)
    left[:, :4] = True
    assert any(np.array_equal(result.masks[0], side) for side in (left, ~left))


def test_scale_of_the_features_does_not_matter(cut):
    features = two_halves(0.05)
    expected = cut(features)
    for factor in (1e-6, 1e30):
        result = cut(features * factor)
        np.testing.assert_array_equal(result.masks, expected.masks)
        np.testing.assert_allclose(result.eigenvalues, expected.eigenvalues, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad):
    features = two_halves(0.05).astype(np.float32)
    broken = features.copy()
    broken[5, 2] = bad
    with pytest.raises(ValueError, match="finite values, got NaN or infinity in 1 of 72 patches"):
        maskcut(broken, GRID)
    expected = maskcut(features, GRID)
    for where in ("host", "device"):
        batch = maskcut_batch(np.stack([broken, features]), GRID, where=where)
        assert batch.invalid.tolist() == [True, False]
        assert not batch.masks[0].any()
        assert np.isnan(batch.eigenvalues[0]).all()
        np.testing.assert_array_equal(batch.masks[1], expected.masks)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("features", "grid", "options", "message"),
    [
        (np.ones((73, 4)), GRID, {}, r"expected 72 patches for a grid of 8 x 9, got 73 .*\[CLS\]"),
        (np.ones((2, 72, 4)), GRID, {}, r"got shape \(2, 72, 4\)"),
        (np.ones((72, 0)), GRID, {}, "not empty"),
        (np.ones((72, 4)), GRID, {"tau": -0.1}, r"\[0, 1\), got -0.1"),
        (np.ones((72, 4)), GRID, {"tau": 1.0}, r"\[0, 1\), got 1.0"),
        (np.ones((72, 4)), GRID, {"tau": np.nan}, r"\[0, 1\), got nan"),
        (np.ones((72, 4)), GRID, {"max_masks": 0}, "max_masks: expected at least 1"),
        (np.ones((2, 4)), (1, 2), {}, "at least 3 patches"),
        (np.ones((72, 4)), (-8, -9), {}, "grid"),
        (np.ones((72, 4)), 72, {}, r"two whole numbers \(rows, columns\).*got 72 and"),
        (np.ones((72, 4)), GRID, {"max_masks": 2.5}, "got .* and 2.5"),
    ],
)
def test_refused(features, grid, options, message):
    with pytest.raises(ValueError, match=message):
        maskcut(features, grid, **options)


def test_unknown_place():
    with pytest.raises(ValueError, match='"host", "device" or None'):
        maskcut_batch(np.ones((1, 72, 4)), GRID, where="gpu")


def test_the_input_is_left_alone():
    features = two_halves(0.05).astype(np.float32)
    before = features.copy()
    maskcut(features, GRID)
    np.testing.assert_array_equal(features, before)
