"""Image files to uint8 RGB, quickly, and without passing off damage as picture.

libjpeg fills what is missing of a truncated JPEG with grey and only warns, and so do OpenCV and
TensorFlow; Pillow passes over wrong checksums of a PNG. Here each is an error that names the file.
What a file is and how large, on the disk and decoded, is looked at before it is decoded.
"""

import contextlib
import errno
import functools
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from crate_jax import files

MAX_MEGAPIXELS = 179.0
"""The largest image by default, in millions of pixels; Pillow has this limit against bombs."""

# Whole image decoded, junk between it and the end marker: several files of ImageNet are like this.
_HARMLESS = "extraneous bytes before marker 0xd9"
_EXIF_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
# What Pillow may open beside JPEG and PNG. Not all that it can: EPS would start Ghostscript.
_FORMATS = ("WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA")
_TIFF_BITS, _TIFF_SENSE, _TIFF_PLANES = 258, 262, 284  # tags
_pillow = threading.RLock()


class CorruptImage(ValueError):
    """An image that cannot be decoded in full.

    Args:
        path: the image's name.
        reason: what it is instead of a whole image, in one line.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both: an exception of a worker process is made again
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path}: expected a whole image (JPEG, PNG, WebP, GIF, TIFF or BMP), got "
            f"{self.reason}; replace or remove the file, or skip such files with "
            "config.data.on_corrupt='skip'"
        )


class Encoded:
    """An image file that is not decoded yet.

    JPEGs go through libjpeg-turbo (`simplejpeg`), grey and CMYK ones included; PNG and WebP through
    OpenCV; TIFF, GIF, BMP, AVIF, JPEG 2000, PPM and TGA through Pillow. 16-bit images keep their
    high byte (where Pillow's own conversion clips grey ones at 255), transparency is dropped (where
    OpenCV multiplies the colours of a TIFF by it), of an animation the first frame is taken, the
    orientation that EXIF data or AVIF's `irot` and `imir` give is applied. (torchvision's
    ImageFolder does not apply it; on the few images of ImageNet that carry one this differs from
    the published pipelines.)

    Args:
        data: the file's content.
        path: its name, for messages.
        max_megapixels: of a larger image nothing is decoded.
        upright: apply the orientation; False gives the pixels as they are stored, which is the
            frame that annotations of data sets are drawn in.
    """

    def __init__(
        self,
        data: bytes,
        path: str,
        max_megapixels: float = MAX_MEGAPIXELS,
        upright: bool = True,
    ):
        self.data, self.path = data, path
        self.max_megapixels, self.upright = max_megapixels, upright

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what `decode()` returns, from the header. Raises CorruptImage."""
        height, width, orientation = self._header
        return (width, height) if orientation >= 5 else (height, width)

    def decode(self, at_least: tuple[int, int] | None = None, fast: bool = False) -> np.ndarray:
        """Decodes the image.

        Args:
            fast: libjpeg-turbo's faster DCT and its plain chroma upsampling, a fifth less time; on
                photographs of 500 x 375 px the result is off by about 1.4 of 255 levels in the
                mean.
            at_least: (height, width); a JPEG may come out smaller than it is, at k/8 of its size
                with k <= 4, as long as it is at least this large: the rest of the DCT is never
                computed.

        Returns:
            uint8[height, width, 3], RGB.

        Raises:
            CorruptImage: truncated, damaged, empty, too large, or not an image.
        """
        height, width, orientation = self._header
        if self._is_jpeg:
            if at_least is not None and orientation >= 5:
                at_least = at_least[::-1]
            return _upright(self._decode_jpeg(at_least, fast), orientation)
        if self.data.startswith(_PNG) or self.data[8:12] == b"WEBP":
            pixels = self._decode_by_opencv()
        else:
            pixels = self._decode_by_pillow()
        if pixels.shape[:2] != (height, width):
            raise self._corrupt(f"a damaged one (its header says {width} x {height} pixels)")
        return _upright(pixels, orientation)

    @property
    def _is_jpeg(self) -> bool:
        return self.data[:2] == b"\xff\xd8"

    @functools.cached_property
    def _header(self) -> tuple[int, int, int]:
        """Height and width as stored, and the orientation to apply; refuses what is too large."""
        if not self.data:
            raise self._corrupt("an empty file")
        if self._is_jpeg:
            height, width, orientation = self._jpeg_header()
        elif self.data.startswith(_PNG):
            height, width, orientation = self._png_header()
        else:
            with _pillow_alone(), self._pillow_image() as image:
                height, width, orientation = _stored_size(image)
        if height * width > self.max_megapixels * 1e6:
            raise self._corrupt(
                f"{width:,} x {height:,} pixels, more than max_megapixels={self.max_megapixels:g}"
            )
        return height, width, orientation if self.upright else 1

    def _jpeg_header(self) -> tuple[int, int, int]:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(self.data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: no colour space found
            raise self._corrupt(f"a JPEG without a complete header ({error})") from error
        return height, width, _jpeg_orientation(self.data)

    def _png_header(self) -> tuple[int, int, int]:
        """Follows the chunks to the last and checks all their sums, which no decoder does."""
        at, kind, size, orientation = len(_PNG), b"", None, 1
        whole = memoryview(self.data)
        while kind != b"IEND":
            if len(self.data) < at + 12:
                raise self._corrupt("a truncated PNG")
            length, kind = struct.unpack_from(">I4s", self.data, at)
            body, end = at + 8, at + 8 + length
            if zlib.crc32(whole[at + 4 : end]) != int.from_bytes(whole[end : end + 4]):
                raise self._corrupt(f"a damaged PNG (checksum of the part at byte {at:,})")
            if kind == b"IHDR" and length >= 8:
                size = struct.unpack_from(">II", self.data, body)
            elif kind == b"eXIf":
                orientation = _orientation(bytes(whole[body:end]))
            at = end + 4
        if size is None:
            raise self._corrupt("a PNG without a header")
        return size[1], size[0], orientation

    def _decode_jpeg(self, at_least: tuple[int, int] | None, fast: bool) -> np.ndarray:
        options = {"colorspace": "RGB", "fastdct": fast, "fastupsample": fast}
        if at_least is not None:
            options |= {"min_height": at_least[0], "min_width": at_least[1], "min_factor": 2}
        try:
            return simplejpeg.decode_jpeg(self.data, **options)
        except ValueError as error:
            if _HARMLESS not in str(error):
                raise self._corrupt(f"a damaged JPEG ({error})") from error
            return simplejpeg.decode_jpeg(self.data, strict=False, **options)

    def _decode_by_opencv(self) -> np.ndarray:
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(self.data, np.uint8), how)
        except cv2.error as error:
            raise self._corrupt(f"one that is not decodable ({error.err})") from error
        if pixels is None:
            raise self._corrupt("a truncated or damaged one")
        return pixels

    def _decode_by_pillow(self) -> np.ndarray:
        with _pillow_alone(), self._pillow_image() as image:
            try:
                if image.format == "TIFF":  # which Pillow would turn while it loads
                    image.getexif().pop(_EXIF_ORIENTATION, None)
                image.load()
            except Exception as error:  # Pillow's decoders raise anything on damaged data
                raise self._corrupt(f"a truncated, damaged or rare one ({_line(error)})") from error
            tags = getattr(image, "tag_v2", {})
            if tags.get(_TIFF_PLANES) == 2 and max(tags.get(_TIFF_BITS)) > 8:  # Pillow reads noise
                raise self._corrupt("a TIFF of 16 bits in separate planes, which is not read")
            if image.mode == "F":
                raise self._corrupt(
                    "floating point values, whose range is not known (save 8 or 16 bits)"
                )
            if image.mode.startswith("I"):
                pixels = self._high_byte(np.asarray(image).astype(np.int64))
                return 255 - pixels if tags.get(_TIFF_SENSE) == 0 else pixels  # 0 is white
            if image.mode in ("La", "RGBa"):  # colours that were multiplied by the transparency
                image = image.convert(image.mode.upper())
            return np.asarray(image.convert("RGB"))

    def _high_byte(self, values: np.ndarray) -> np.ndarray:
        if values.min() < 0 or values.max() > 65535:
            raise self._corrupt(
                f"integer values {values.min()}..{values.max()} (expected 8 or 16 bits)"
            )
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)

    def _pillow_image(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self.data), formats=_FORMATS)
        except Exception as error:
            raise self._corrupt("what is not an image of a known kind, or damaged") from error

    def _corrupt(self, reason: str) -> CorruptImage:
        return CorruptImage(self.path, reason)


def read(
    path: str | os.PathLike, max_megapixels: float = MAX_MEGAPIXELS, upright: bool = True
) -> Encoded:
    """Reads an image file without decoding it; the arguments are those of `Encoded`.

    Raises:
        CorruptImage: not a regular file (a pipe would be waited for, a device read for ever, and
            what /proc holds, of no size, too), a link to none, or larger than 16 bits RGBA of
            `max_megapixels` could be.
        OSError: names the path.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ELOOP):
            raise CorruptImage(path, "a link that leads to no file") from error
        raise
    if not stat.S_ISREG(status.st_mode):
        raise CorruptImage(path, f"{files.kind(status.st_mode)}, not a file")
    if not status.st_size:
        raise CorruptImage(path, "an empty file")
    if status.st_size > 8e6 * max_megapixels + (1 << 24):
        raise CorruptImage(
            path,
            f"a file of {status.st_size / 1e9:.1f} GB, more than max_megapixels="
            f"{max_megapixels:g} can need",
        )
    with open(path, "rb", buffering=0) as file:
        return Encoded(file.read(), path, max_megapixels, upright)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _pillow_alone() -> Iterator[None]:
    """Without Pillow's limit of pixels, since ours stands before it, and without its warnings.

    What they tell of is refused here, or no damage to the picture. Both are global: one at a time.
    """
    with _pillow, warnings.catch_warnings(action="ignore", category=UserWarning):
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _stored_size(image: Image.Image) -> tuple[int, int, int]:
    """Height and width as stored, and the orientation; of an image that Pillow has opened."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow gives the size as displayed
        orientation = image.tag_v2.get(_EXIF_ORIENTATION, 1)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return height, width, orientation if orientation in range(1, 9) else 1
    return height, width, _orientation(image.info.get("exif", b""))


def _jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG; 1 where none of the segments before the image is EXIF."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # start of scan
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return _orientation(data[at + 4 : end])
        at = end
    return 1


def _orientation(exif: bytes) -> int:
    """The orientation that EXIF data give, 1 to 8; 1 where they give none."""
    found = Image.Exif()
    try:
        with _pillow_alone():
            found.load(exif)
            value = found.get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata is no damage to the picture
        return 1
    return value if value in range(1, 9) else 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation: 5 to 8 are transposed, 2, 3, 7, 8 ... mirrored."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
