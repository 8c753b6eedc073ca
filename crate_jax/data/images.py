"""Anyone's image files, read as the picture that a viewer shows: uint8 RGB, upright.

Grey, palette, CMYK, transparent and 16-bit images of any format that OpenCV or Pillow knows are
read; what is damaged, too large or without a known range of values is refused with one line.
"""

import dataclasses
import io
import os
import pathlib
import warnings

import cv2
import numpy as np
from PIL import Image

from crate_jax.data import decode, folders

_MORE = (".jpe", ".jfif", ".jp2", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = (*folders.EXTENSIONS, *_MORE)

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
"""179 million: Pillow's limit against decompression bombs."""

REDUCED_ABOVE = 25_000_000
"""Pixels above which a JPEG may be decoded at a fraction of its size (`read(at_least=...)`)."""


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message is one line and names no remedy of ours."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8[h, w, 3], RGB, upright; smaller than `size` where a reduced decoding was
            asked for.
        size: (height, width) of the image itself, as displayed.
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
        ValueError: nothing there, or no image.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return [path.name]
    if not path.is_dir():
        raise ValueError(f"images: expected a folder or an image file, found nothing at {path}")
    found, others = [], 0
    for folder, subfolders, names in os.walk(path):
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


def read(path: str | os.PathLike, at_least: tuple[int, int] | None = None) -> Picture:
    """Reads an image file.

    16-bit values keep their high byte and transparency is dropped (as in the published pipelines,
    which convert to RGB); the EXIF orientation is applied; of an animation the first frame is
    taken.

    Args:
        path: the file.
        at_least: (height, width). A JPEG of more than `REDUCED_ABOVE` pixels may come out smaller
            than it is, at a half or less, but not below this: the memory of 100 megapixels is
            saved. None decodes all.

    Raises:
        UnreadableImage: damaged, empty, not an image, more than `MAX_PIXELS`, or values without a
            known range (floating point).
        OSError: the file cannot be read.
    """
    encoded = decode.read(os.fspath(path))
    _check_pixels(encoded)
    try:
        size = encoded.size
        large = size[0] * size[1] > REDUCED_ABOVE
        return Picture(encoded.decode(at_least if large else None), size)
    except decode.CorruptImage as error:
        if not encoded.data or encoded.data[:2] == b"\xff\xd8":
            reason = str(error).partition(". Expected")[0].removeprefix("Cannot decode ")
            raise UnreadableImage(reason.removeprefix(f"{encoded.path}: ")) from error
    except cv2.error as error:
        raise UnreadableImage(f"not decodable ({error.err})") from error
    pixels = _with_pillow(encoded.data)
    return Picture(pixels, pixels.shape[:2])


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h, w, 3] at (height, width) by Pillow's LANCZOS, antialiased, as MaskCut does."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS))


def _check_pixels(encoded: decode.Encoded) -> None:
    """Refuses a decompression bomb before it is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            width, height = Image.open(io.BytesIO(encoded.data)).size
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
        except Exception:  # Pillow does not know it: OpenCV may, and has a limit of its own
            return
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def _with_pillow(data: bytes) -> np.ndarray:
    """Decodes what OpenCV does not: TGA, 32-bit integers and rarities."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise UnreadableImage("truncated, damaged, or not an image") from error
    if image.mode == "F":
        raise UnreadableImage("floating point values, whose range is not known; save 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(
                f"integer values {values.min()}..{values.max()}; expected 8 or 16 bits"
            )
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
