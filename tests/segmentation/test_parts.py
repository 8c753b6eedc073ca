import numpy as np
import pytest

from crate_jax.segmentation.parts import layer_components, parts, principal_components


def svd_scores(tokens, count):
    """Principal components by the singular value decomposition, sign left open."""
    centred = tokens - tokens.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :count] * s[:count]


def up_to_sign(a, b):
    return a * np.sign((a * b).sum(axis=0))


@pytest.fixture(scope="module")
def features():
    """Three images: background, and an object of three parts, in a 12-dimensional space."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 12)) * [[0.5], [1], [1], [1]]
    centres[1:] += 6 * rng.normal(size=12)
    labels = rng.integers(0, 4, size=(3, 40))
    return centres[labels] + 0.05 * rng.normal(size=(3, 40, 12)), labels


@pytest.mark.parametrize("shape", [(200, 10), (12, 30)])
def test_equals_the_singular_value_decomposition(shape):
    tokens = np.random.default_rng(1).normal(size=shape) * np.linspace(3, 1, shape[1]) + 5
    ours, theirs = principal_components(tokens, 4), svd_scores(tokens, 4)
    np.testing.assert_allclose(up_to_sign(ours, theirs), theirs, atol=1e-9)


def test_sign_is_fixed_by_the_largest_loading():
    tokens = np.random.default_rng(1).normal(size=(50, 6))
    ours = principal_components(tokens, 3)
    directions = np.linalg.lstsq(tokens - tokens.mean(0), ours, rcond=None)[0]
    assert (directions[np.abs(directions).argmax(axis=0), range(3)] > 0).all()


def test_two_stages(features):
    tokens, labels = features
    result = parts(tokens, (1, 40), scaling="all")
    if not (result.foreground == (labels > 0)).all():  # the arbitrary side
        result = parts(tokens, (1, 40), flip=True, scaling="all")
    np.testing.assert_array_equal(result.foreground, labels > 0)
    assert result.first.min() == 0
    assert result.first.max() == 1

    kept = tokens.reshape(-1, 12)[labels.ravel() > 0]
    theirs = svd_scores(kept, 3)
    ours = result.rgb[result.foreground].astype(float)
    for channel in range(3):
        a, b = ours[:, channel], theirs[:, channel]
        b = b if np.corrcoef(a, b)[0, 1] > 0 else -b
        np.testing.assert_allclose(a, (b - b.min()) / (b.max() - b.min()), atol=1e-6)
    assert not result.rgb[~result.foreground].any()
    # The same part has the same colour in each image, another part another one.
    colours = [result.rgb[labels == part].mean(0) for part in (1, 2, 3)]
    for part, colour in zip((1, 2, 3), colours, strict=True):
        assert np.abs(result.rgb[labels == part] - colour)[:, :2].max() < 0.25
    assert min(np.abs(colours[i] - colours[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.3


@pytest.mark.parametrize("scaling", ["image", "all"])
def test_flip_takes_the_other_side(features, scaling):
    one, other = (parts(features[0], (1, 40), flip, scaling) for flip in (False, True))
    np.testing.assert_allclose(one.first + other.first, 1, atol=1e-6)
    np.testing.assert_array_equal(one.foreground, ~other.foreground)


def on_a_line(*images):
    """Tokens on one line, so that their position is the first component: f[J, n, 1]."""
    return np.array(images, float)[..., None]


def test_each_image_is_scaled_by_itself():
    """Closed form: positions on a line; the second image spans a quarter of the first."""
    tokens = on_a_line([0, 1, 2, 4, 8], [4, 4.5, 5, 5.5, 6])
    found = parts(tokens, (1, 5))
    np.testing.assert_allclose(
        found.first, [[0, 0.125, 0.25, 0.5, 1], [0, 0.25, 0.5, 0.75, 1]], atol=1e-6
    )
    np.testing.assert_array_equal(found.foreground, [[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]])
    # One token of the first image, two of the second: 0 where there is nothing to scale by.
    np.testing.assert_allclose(found.rgb[found.foreground, 0], [0, 0, 1], atol=1e-6)
    together = parts(tokens, (1, 5), scaling="all")
    np.testing.assert_allclose(together.first, tokens[..., 0] / 8, atol=1e-6)
    np.testing.assert_array_equal(together.foreground, tokens[..., 0] > 4)
    np.testing.assert_allclose(
        together.rgb[together.foreground, 0], (np.array([8, 4.5, 5, 5.5, 6]) - 4.5) / 3.5, atol=1e-6
    )


def test_colours_of_each_image_span_the_range(features):
    found = parts(features[0], (1, 40))
    for colours, inside in zip(found.rgb, found.foreground, strict=True):
        np.testing.assert_allclose(colours[inside].min(0), 0, atol=1e-6)
        np.testing.assert_allclose(colours[inside].max(0), 1, atol=1e-6)


def test_holes_are_filled_within_an_image():
    ring = np.ones((4, 5))
    ring[1, 2] = ring[0, 0] = ring[2, 4] = 0  # one enclosed, two open to the border
    filled = ring.copy()
    filled[1, 2] = 1
    blank = np.zeros((4, 5))
    blank[0, 0] = 1
    # In the middle of three, a hole is not open towards the images before and after it.
    tokens = on_a_line(blank.ravel(), ring.ravel(), blank.ravel())
    for scaling in ("image", "all"):
        found = parts(tokens, (4, 5), scaling=scaling)
        np.testing.assert_array_equal(
            found.foreground.reshape(3, 4, 5), np.stack([blank, filled, blank])
        )


@pytest.mark.usefixtures("types_unchecked")
def test_a_grid_that_is_not_given_is_a_square():
    tokens = np.random.default_rng(0).normal(size=(2, 9, 4))
    np.testing.assert_array_equal(parts(tokens).rgb, parts(tokens, (3, 3)).rgb)
    for patches, grid in ((8, None), (9, (2, 4))):
        with pytest.raises(ValueError, match=f"expected rows x columns = {patches} patches"):
            parts(np.ones((1, patches, 2)), grid)
    with pytest.raises(ValueError, match="scaling: expected one of image, all, got 'pooled'"):
        parts(np.ones((1, 9, 2)), scaling="pooled")


def test_layer_components(features):
    grey, rgb = layer_components(features[0])
    theirs = svd_scores(features[0].reshape(-1, 12), 4)
    ours = np.concatenate([grey[..., None], rgb], axis=-1).reshape(-1, 4)
    assert ours.min() == 0
    assert ours.max() == 1
    for channel in range(4):
        assert abs(np.corrcoef(ours[:, channel], theirs[:, channel])[0, 1]) > 1 - 1e-9


def test_nothing_to_separate():
    result = parts(np.full((2, 9, 5), 0.1))
    assert not result.foreground.any()
    assert not result.rgb.any()
    few = np.zeros((1, 9, 2))
    few[0, 0] = 1  # one token against eight equal ones
    for flip in (False, True):
        result = parts(few, flip=flip)
        assert result.foreground.sum() in (1, 8)
        assert np.isfinite(result.rgb).all()
    grey, rgb = layer_components(np.ones((1, 4, 2)))
    assert not grey.any()
    assert not rgb.any()


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((4, 3)), r"f\[images, patches, channels\].*got shape \(4, 3\)"),
        (np.full((1, 4, 3), np.nan), "finite"),
        (np.ones((0, 4, 3)), "not empty"),
    ],
)
def test_refused(features, message):
    for function in (parts, layer_components):
        with pytest.raises(ValueError, match=message):
            function(features)
