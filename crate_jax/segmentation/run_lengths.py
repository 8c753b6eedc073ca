"""COCO's segmentations as run-length codes, checked before pycocotools reads them.

Its C code takes what it is given: a code that is none makes it run for ever, and a polygon far
outside of its image ends the process.
"""

# The stubs of pycocotools know neither several polygons nor codes as dictionaries.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

from typing import Any

import numpy as np
from pycocotools import mask as rle

# Real polygons reach a pixel or so beyond their image; what is further away than its sides is none.
_BEYOND = 1.0
_MOST_PIXELS = 2**31 - 1  # pycocotools counts in 32 bits


def checked(segmentation: Any, size: tuple[int, int], what: str) -> dict:
    """A segmentation as a compressed run-length code of its image.

    Args:
        segmentation: a compressed or uncompressed run-length code (`size`, `counts`), or a list of
            polygons [x, y, x, y, ...] in pixels.
        size: (height, width) of the image.
        what: the segmentation's name in an error.

    Returns:
        {"size": [height, width], "counts": bytes}; of polygons, their union.

    Raises:
        ValueError: anything else: a code that does not cover the image exactly, a polygon of fewer
            than three corners or further outside of the image than its sides are long.
    """
    height, width = (int(side) for side in size)
    if not 0 < height * width <= _MOST_PIXELS:
        raise ValueError(f"{what}: expected an image of 1 to 2^31 pixels, got {height} x {width}")
    if isinstance(segmentation, dict):
        return _checked_code(segmentation, (height, width), what)
    if isinstance(segmentation, list | tuple) and segmentation:
        polygons = [_checked_polygon(p, (height, width), what) for p in segmentation]
        return rle.merge(rle.frPyObjects(polygons, height, width))
    raise ValueError(
        f"{what}: expected a run-length code or a list of polygons, got {str(segmentation)[:80]!r}"
    )


def _checked_polygon(polygon: Any, size: tuple[int, int], what: str) -> list[float]:
    try:
        points = np.array(polygon, np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        points = np.zeros((0, 2))
    sides = np.array(size[::-1])
    low, high = -_BEYOND * sides, (1 + _BEYOND) * sides
    # Not a number is neither.
    if len(points) < 3 or not ((points >= low) & (points <= high)).all():
        raise ValueError(
            f"{what}: expected polygons [x, y, x, y, ...] of at least three corners within their "
            f"image of {size[0]} x {size[1]} pixels, got {str(polygon)[:80]}; correct the "
            "annotation, or leave it out"
        )
    return points.ravel().tolist()


def _checked_code(code: dict, size: tuple[int, int], what: str) -> dict:
    counts, runs = None, np.zeros(0, np.int64)
    try:
        given = tuple(int(side) for side in code["size"])
        counts = code["counts"]
        runs = _runs(counts) if isinstance(counts, str | bytes) else np.array(counts, np.int64)
        sound = (
            given == size and runs.ndim == 1 and (runs >= 0).all() and runs.sum() == np.prod(size)
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise ValueError(
            f"{what}: expected a run-length code whose runs make up its image of {size[0]} x "
            f"{size[1]} pixels, got {str(code)[:80]}; correct the annotation, or leave it out"
        )
    if isinstance(counts, str | bytes):
        return {
            "size": list(size),
            "counts": counts.encode() if isinstance(counts, str) else counts,
        }
    return rle.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def _runs(text: str | bytes) -> np.ndarray:
    """The lengths int[k] that COCO's compressed text stands for.

    A length takes digits of 5 bits, the lowest first, each in a character from "0" on whose sixth
    bit says that another one follows; the fifth bit of the last is the sign. From the fourth
    length on, what is written is the difference to the last but one.

    Raises:
        ValueError: the text is none.
    """
    characters = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)
    digits = characters.astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("not a run-length code")
    start = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    number = np.cumsum(last) - last
    place = np.arange(len(digits)) - start[number]
    if place.max() > 6:
        raise ValueError("a run of more than 2^31 pixels")
    values = np.add.reduceat((digits & 31) << (5 * place), start)
    negative = (digits[last] & 16) > 0
    values -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    # Every second value from the second and the third on adds up.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values
