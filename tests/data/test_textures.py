import numpy as np
import pytest

from crate_jax.data import textures
from crate_jax.data.scenes import Scenes


@pytest.mark.parametrize("kind", textures.KINDS)
def test_a_texture_is_a_function_of_kind_split_and_number(kind):
    first = textures.load(kind, "train", 3)
    again = textures.load.__wrapped__(kind, "train", 3)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (textures.SIDE, textures.SIDE, 3)
    assert first.dtype == np.uint8
    for split, number in (("train", 4), ("val", 3)):
        assert (textures.load(kind, split, number) != first).mean() > 0.5


@pytest.mark.parametrize("kind", textures.KINDS)
def test_the_spectrum_falls_as_that_of_natural_images(kind):
    # Power of natural images: about 1 / f^2, single ones 1.4 to 3.2 (Torralba and Oliva, 2003).
    slopes = []
    for number in range(4):
        grey = textures.load(kind, "val", number).mean(-1)
        window = np.hanning(textures.SIDE)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window * window[:, None])) ** 2
        frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(textures.SIDE)] * 2))
        bands = np.geomspace(0.01, 0.35, 12)
        bins = np.digitize(frequency, bands)
        mean = [power[bins == k].mean() for k in range(1, len(bands))]
        middle = np.sqrt(bands[1:] * bands[:-1])
        slopes.append(np.polyfit(np.log(middle), np.log(mean), 1)[0])
    assert -3.4 < min(slopes) <= max(slopes) < -1.4, slopes


def test_the_mixture_is_an_option():
    sizes = {"image_size": 64, "length": 300, "contrast": (1.0, 1.0)}
    images = {}
    for name, options in {
        "photographs": {"leaves": 0, "noise": 0},
        "leaves": {"leaves": 1, "noise": 0},
        "noise": {"leaves": 0, "noise": 1},
        "mixed": {"leaves": 0.5, "noise": 0.5},
    }.items():
        source = Scenes("train", **sizes, **options)
        images[name] = np.stack([source[i]["image"] for i in range(40)])
    same = {
        name: (images["mixed"] == images[name]).all((1, 2, 3)).mean()
        for name in ("photographs", "leaves", "noise")
    }
    assert same["photographs"] == 0
    assert same["leaves"] + same["noise"] == 1
    assert 0.25 < same["leaves"] < 0.75
