"""The noise has the strength, the extent and the determinism that it says."""

import numpy as np
import pytest

from crate_jax.segmentation import noise


@pytest.fixture
def grey():
    return np.full((100, 120, 3), 128, np.uint8)


def test_settings_are_the_papers():
    assert set(noise.SETTINGS) == {
        *((10, 0.5), (25, 0.5), (50, 0.5), (75, 0.5)),
        *((75, 0.1), (75, 0.25), (75, 0.75)),
    }
    assert len(noise.SETTINGS) == 7


@pytest.mark.parametrize(("sd", "fraction"), [(10, 0.5), (25, 0.5), (25, 0.1)])
def test_strength_and_extent(grey, sd, fraction):
    noisy = noise.add_noise(grey, sd, fraction, seed=0)
    difference = noisy.astype(float) - 128
    changed = (difference != 0).any(-1)
    # A draw rounds to nothing in all three channels with probability 6e-5 at sd 10.
    assert changed.sum() == pytest.approx(fraction * 12000, abs=4)
    assert difference[changed].std() == pytest.approx(sd, rel=0.05)
    assert abs(difference[changed].mean()) < 3 * sd / np.sqrt(3 * changed.sum())
    channels = difference[changed].T
    assert abs(np.corrcoef(channels)[0, 1]) < 0.1


def test_strong_noise_is_clipped_not_wrapped():
    white = np.full((50, 50, 3), 250, np.uint8)
    noisy = noise.add_noise(white, 75, 1.0, seed=0)
    assert noisy.max() == 255
    assert (noisy == 255).mean() > 0.4
    assert (noisy < 60).mean() < 0.02  # a wrapped sum would be dark in nearly half of them


def test_a_seed_fixes_pixels_and_draws(grey):
    first = noise.add_noise(grey, 25, 0.5, seed=(3, 7))
    np.testing.assert_array_equal(first, noise.add_noise(grey, 25, 0.5, seed=(3, 7)))
    assert (first != noise.add_noise(grey, 25, 0.5, seed=(3, 8))).any()
    less, more = (noise.add_noise(grey, 25, f, seed=(3, 7)) for f in (0.25, 0.75))
    touched = (less != 128).any(-1)
    np.testing.assert_array_equal(less[touched], more[touched])
    assert (grey == 128).all()


@pytest.mark.usefixtures("types_unchecked")
def test_no_noise_and_errors(grey):
    np.testing.assert_array_equal(noise.add_noise(grey, 0, 1, seed=0), grey)
    np.testing.assert_array_equal(noise.add_noise(grey, 75, 0, seed=0), grey)
    with pytest.raises(ValueError, match="before the normalisation"):
        noise.add_noise(grey / 255, 10, 0.5, seed=0)
    for sd, fraction in ((-1, 0.5), (10, 50)):
        with pytest.raises(ValueError, match=r"fraction in \[0, 1\]"):
            noise.add_noise(grey, sd, fraction, seed=0)
