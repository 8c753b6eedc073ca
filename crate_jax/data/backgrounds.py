"""Crops of photographs and of computed textures, as backgrounds of scenes and pieces in them."""

import colorsys
import dataclasses
import functools
import math

import cv2
import numpy as np

from crate_jax.data import photographs, textures

DRAWS = 10  # uniform draws that one crop takes


@dataclasses.dataclass(frozen=True)
class Backgrounds:
    """Crops by uniform draws.

    Args:
        split: "train" or "val".
        size: px, side of the crops.
        photographs: names to crop from.
        leaves, noise: share of the crops that come from dead leaves and 1/f noise (`textures`); the
            rest comes from photographs.
        zoom: range of picture pixels per pixel of the crop, as far as the picture reaches.
        contrast: range of the factor on the deviation from the crop's mean colour.
    """

    split: str
    size: int
    photographs: tuple[str, ...]
    leaves: float
    noise: float
    zoom: tuple[float, float]
    contrast: tuple[float, float]

    def crop(self, draws: np.ndarray) -> np.ndarray:
        """A crop, mirrored or not, tinted and of changed contrast: uint8[size, size, 3].

        Args:
            draws: f64[DRAWS], uniform in [0, 1).
        """
        kind, which, zoom, x, y, mirror, contrast, *tint = draws.tolist()
        picture = self._picture(kind, which)
        # Log-uniform, so that halving and doubling the grain of a texture are equally likely.
        zoom = self.zoom[0] * (self.zoom[1] / self.zoom[0]) ** zoom
        side = min(self.size * zoom, *_size(*picture))
        step = max(0, math.floor(2 * math.log2(side / self.size)))
        level = _level(*picture, step)
        height, width = level.shape[:2]
        side = min(round(side / 2 ** (step / 2)), height, width)
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        crop = level[top : top + side, left : left + side]
        if side != self.size:
            crop = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if mirror < 0.5:
            crop = cv2.flip(crop, 1)
        return self._tinted(crop, contrast, tint)

    def check(self) -> None:
        """Reads every photograph, so that one that is missing is found before any work."""
        for name in self.photographs:
            _base("photograph", name, 0)

    def _picture(self, kind: float, which: float) -> tuple[str, str, int]:
        """What `_level` takes, from two draws."""
        if kind < self.leaves:
            return "leaves", self.split, int(which * textures.COUNT)
        if kind < self.leaves + self.noise:
            return "noise", self.split, int(which * textures.COUNT)
        return "photograph", self.photographs[int(which * len(self.photographs))], 0

    def _tinted(self, crop: np.ndarray, contrast: float, tint: list[float]) -> np.ndarray:
        """Tint, which gives the grey photographs colour, and contrast, as a table a channel."""
        factor = self.contrast[0] + contrast * (self.contrast[1] - self.contrast[0])
        hue, saturation, value = tint
        colour = np.array(colorsys.hsv_to_rgb(hue, 0.4 * saturation, 0.7 + 0.3 * value))
        offset = (1 - factor) * colour * cv2.mean(crop)[:3]
        mapped = np.rint(_LEVELS * (factor * colour) + offset)
        return cv2.LUT(crop, mapped.astype(np.uint8)[None])


_LEVELS = np.arange(256.0)[:, None]
_SHORT_SIDE = 1024  # px, of which no crop of a photograph needs more


def _base(kind: str, key: str, number: int) -> np.ndarray:
    """A whole picture: a photograph by its name, or a texture by its split and number."""
    if kind == "photograph":
        return photographs.load(key, _SHORT_SIDE)
    return textures.load(kind, key, number)


@functools.lru_cache(maxsize=1024)
def _size(kind: str, key: str, number: int) -> tuple[int, int]:
    return _base(kind, key, number).shape[:2]


@functools.lru_cache(maxsize=1024)
def _level(kind: str, key: str, number: int, step: int) -> np.ndarray:
    """A picture shrunk by area by 2^(step / 2), so that little is left to do for each crop."""
    picture = _base(kind, key, number)
    size = [max(1, round(length / 2 ** (step / 2))) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if step else picture
