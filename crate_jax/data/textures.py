"""Backgrounds that are computed: dead leaves and 1/f noise, in the colours of photographs.

Both have the statistics of natural images that photographs of one place share with those of
another: a power spectrum near 1/f^2, and, for leaves, edges and occlusion at all scales. They
never run out, so that a network cannot learn a handful of photographs by heart.
"""

import functools

import cv2
import numpy as np

from crate_jax.data import photographs, randomness

SIDE = 384  # px
COUNT = 24  # of each kind and split; crops, zoom and colours make the rest
KINDS = ("leaves", "noise")

_STREAMS = {"train": randomness.TEXTURES_TRAIN, "val": randomness.TEXTURES_VAL}
_LEAVES = 1800
_SMALLEST, _LARGEST = 4.0, 160.0  # px, radii of leaves


@functools.lru_cache(maxsize=4 * COUNT)
def load(kind: str, split: str, number: int) -> np.ndarray:
    """A texture, a function of its arguments alone: uint8[SIDE, SIDE, 3], RGB, read-only.

    Args:
        kind: "leaves" or "noise".
        split: "train" or "val"; their textures and palettes have nothing in common.
        number: 0 to COUNT - 1.
    """
    rng = randomness.generator(0, _STREAMS[split], KINDS.index(kind), number)
    texture = {"leaves": _leaves, "noise": _noise}[kind](rng, _palette(rng, split))
    texture.setflags(write=False)
    return texture


def _leaves(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Dead leaves: opaque shapes fall on each other (Lee, Mumford and Huang, 2001, IJCV 41).

    Their radii have a density of r^-3, which makes the image look the same at every scale. Each
    has one colour, a grain and a gradient of its own, as from light.
    """
    side = 2 * SIDE  # drawn at twice the size and averaged, which smooths the edges
    leaf = np.zeros((side, side), np.int32)
    least, most = (2 * radius for radius in (_SMALLEST, _LARGEST))
    draws = rng.random((_LEAVES, 5))
    radii = (least**-2 - rng.random(_LEAVES) * (least**-2 - most**-2)) ** -0.5
    for number, radius in enumerate(radii.tolist()):
        u, v, turn, flat, shape = draws[number].tolist()
        box = ((u * side, v * side), (2 * radius, 2 * radius * (0.4 + 0.6 * flat)), 180 * turn)
        if shape < 0.5:
            cv2.ellipse(leaf, box, number, -1)
        else:
            cv2.fillConvexPoly(leaf, np.rint(cv2.boxPoints(box)).astype(np.int32), number)
    colours = palette[rng.integers(len(palette), size=_LEAVES)]
    slopes = rng.normal(0, 0.25 / side, (2, _LEAVES)).astype(np.float32)
    grain = rng.uniform(0, 0.15, _LEAVES).astype(np.float32)
    across = np.arange(side, dtype=np.float32) - side / 2
    light = 1 + slopes[0][leaf] * across + slopes[1][leaf] * across[:, None]
    light += grain[leaf] * np.tile(_field(rng, 1.2), (2, 2))
    picture = np.clip(colours[leaf] * light[..., None], 0, 255)
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _noise(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Gaussian noise whose amplitude falls as 1 / frequency^a, a from 0.9 to 1.6.

    Three such fields move each pixel's colour from the palette's mean along its principal axes, as
    far as the palette itself spreads.
    """
    exponent = rng.uniform(0.9, 1.6)
    fields = np.stack([_field(rng, exponent) for _ in range(3)], -1)
    chosen = palette[rng.integers(len(palette), size=64)]
    mean = chosen.mean(0)
    _, spread, axes = np.linalg.svd(chosen - mean, full_matrices=False)
    picture = mean + fields @ ((spread / np.sqrt(len(chosen)))[:, None] * axes)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _field(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Periodic noise of mean 0 and variance 1 with amplitudes 1 / f^exponent: f32[SIDE, SIDE]."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32))
    field = np.fft.irfft2(white / frequency**exponent)
    return (field / field.std()).astype(np.float32)


def _palette(rng: np.random.Generator, split: str) -> np.ndarray:
    """Colours, f32[1024, 3], of a photograph of the split, tinted in four ways, of moderate light.

    Half of the photographs are grey and one is nearly black: this gives their palettes colour too.
    """
    names = photographs.names(split)
    pixels = photographs.load(names[rng.integers(len(names))], 64).reshape(-1, 3)
    palette = pixels[rng.integers(len(pixels), size=1024)].astype(np.float32)
    tints = rng.uniform(0.6, 1.0, (4, 3)).astype(np.float32)
    palette = palette * tints[rng.integers(4, size=1024)]
    return np.clip(palette * (rng.uniform(60, 140) / palette.mean()), 0, 255)
