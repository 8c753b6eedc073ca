"""Anyone's image files, read as the picture that a viewer shows: uint8 RGB, upright.

Grey, palette, CMYK, transparent and 16-bit images of the formats in `EXTENSIONS` are read; what is
damaged, too large or without a known range of values is refused with one line.
"""

import dataclasses
import os
import pathlib

import numpy as np
from PIL import Image

from crate_jax.data import decode, folders

_MORE = (".jpe", ".jfif", ".jp2", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = (*folders.EXTENSIONS, *_MORE)

REDUCED_ABOVE = 25_000_000
"""Pixels above which a JPEG may be decoded at a fraction of its size (`read(at_least=...)`)."""


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message is one line and names no remedy of ours."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8[h, w, 3], RGB; smaller than `size` where a reduced decoding was asked for.
        size: (height, width) of the image itself, in the same frame.
    """

    pixels: np.ndarray
    size: tuple[int, int]


def find(path: str | os.PathLike) -> list[str]:
    """The image files of a folder and its subfolders, or the one file.

    Args:
        path: a folder, of which files with one of `EXTENSIONS` (in either case) count and hidden
            ones do not, or a file of any name. Links to folders are not followed.

    Returns:
        Paths relative to the folder (to the file's own folder), with `/`, in the sorted order of
        their characters, which no locale and no file system changes.

    Raises:
        ValueError: nothing there, no image, or a folder that may not be read.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if path.is_file():
        return [path.name]
    if not path.is_dir():
        raise ValueError(f"images: expected a folder or an image file, found nothing at {path}")
    found, others = [], 0
    for folder, subfolders, names in os.walk(path, onerror=_refuse):
        here = pathlib.Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or not name.lower().endswith(EXTENSIONS):
                others += 1
                continue
            found.append((here / name).relative_to(path).as_posix())
    if not found:
        raise ValueError(
            f"images: expected image files ({', '.join(EXTENSIONS)}) in {path} or below, found "
            f"{others} other files"
        )
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise ValueError(
        f"images: expected folders that may be read, got {error.strerror} for {error.filename}; "
        "change its permissions, or give a folder without it"
    ) from error


def read(
    path: str | os.PathLike,
    at_least: tuple[int, int] | None = None,
    *,
    upright: bool = True,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
) -> Picture:
    """Reads an image file.

    16-bit values keep their high byte and transparency is dropped (as in the published pipelines,
    which convert to RGB); of an animation the first frame is taken.

    Args:
        path: the file.
        at_least: (height, width). A JPEG of more than `REDUCED_ABOVE` pixels may come out smaller
            than it is, at a half or less, but not below this: the memory of 100 megapixels is
            saved. None decodes all.
        upright: apply the orientation that EXIF data or AVIF's properties give. False gives the
            pixels as stored: the frame in which VOC, COCO and other sets are annotated.
        max_megapixels: of a larger image nothing is decoded.

    Raises:
        UnreadableImage: damaged, empty, not an image or no regular file, too large, or values
            without a known range (floating point).
        OSError: the file cannot be read.
    """
    try:
        encoded = decode.read(path, max_megapixels, upright)
        size = encoded.size
        large = size[0] * size[1] > REDUCED_ABOVE
        return Picture(encoded.decode(at_least if large else None), size)
    except decode.CorruptImage as error:
        raise UnreadableImage(error.reason) from error


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h, w, 3] at (height, width) by Pillow's LANCZOS, antialiased, as MaskCut does."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS))
