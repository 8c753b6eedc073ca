"""The paper's noise: how robust is the segmentation that emerges (arXiv 2308.16271, appendix)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

STANDARD_DEVIATIONS = (10, 25, 50, 75)
"""Of the first series, of 255, each on half of the pixels."""

FRACTIONS = (0.10, 0.25, 0.50, 0.75)
"""Of pixels, of the second series, each with standard deviation 75."""

SETTINGS = tuple(
    dict.fromkeys([(sd, 0.5) for sd in STANDARD_DEVIATIONS] + [(75, part) for part in FRACTIONS])
)
"""(standard deviation, fraction of pixels) of both series; (75, 0.5), in both, comes once."""


def add_noise(
    image: UInt8[np.ndarray, "height width channels"],
    sd: float,
    fraction: float,
    seed: int | Sequence[int],
) -> UInt8[np.ndarray, "height width channels"]:
    """Adds Gaussian noise to a random share of an image's pixels.

    Each chosen pixel gets an independent normal draw in each channel; the sum is rounded and
    clipped to 0..255. The paper does not say whether a pixel's channels share a draw, or that
    values are clipped; that is our reading.

    One seed gives the same pixels in the same order and the same unit draws whatever `sd` and
    `fraction`: the pixels of a smaller fraction are among those of a larger one, and settings
    differ by nothing but what they say.

    Args:
        image: uint8[height, width, channels].
        sd: standard deviation in grey levels of 255, at least 0.
        fraction: share of pixels, in [0, 1]; floor(fraction * pixels + 1/2) are chosen.
        seed: of NumPy's default generator; (seed, index) gives each image of a set its own.

    Returns:
        uint8[height, width, channels], a new array.

    Raises:
        ValueError: another type or shape, a negative `sd`, or a fraction outside [0, 1].
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(
            f"image: expected uint8[height, width, channels], got {image.dtype} {image.shape}; "
            "add noise before the normalisation"
        )
    if not (sd >= 0 and 0 <= fraction <= 1):
        raise ValueError(
            f"sd, fraction: expected sd >= 0 and a fraction in [0, 1], got {sd} and {fraction}; "
            "50 % is 0.5"
        )
    rng = np.random.default_rng(seed)
    pixels = image.reshape(-1, image.shape[2])
    chosen = rng.permutation(len(pixels))[: int(fraction * len(pixels) + 0.5)]
    draws = rng.standard_normal(pixels.shape)
    noisy = pixels.astype(np.float64)
    noisy[chosen] += sd * draws[chosen]
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8).reshape(image.shape)
