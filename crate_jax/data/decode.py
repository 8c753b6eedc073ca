"""Image files to uint8 RGB, quickly, and without passing off damage as picture.

libjpeg fills what is missing of a truncated JPEG with grey and only warns, and so do OpenCV and
TensorFlow. Here the warning is an error that names the file.
"""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

# Whole image decoded, junk between it and the end marker: several files of ImageNet are like this.
_HARMLESS = "extraneous bytes before marker 0xd9"
_EXIF_ORIENTATION = 0x0112


class CorruptImage(ValueError):
    """An image that cannot be decoded in full; the message names its path."""


class Encoded:
    """An image file that is not decoded yet.

    JPEGs go through libjpeg-turbo (`simplejpeg`), grey and CMYK ones included; PNG, WebP, GIF, TIFF
    and BMP through OpenCV. 16-bit images keep their high byte, transparency is dropped, the
    orientation of the EXIF data is applied. (torchvision's ImageFolder does not apply it; on the
    few images of ImageNet that carry one this differs from the published pipelines.)

    Args:
      data: the file's content.
      path: its name, for messages.
    """

    def __init__(self, data: bytes, path: str):
        self.data, self.path = data, path
        self._is_jpeg = data[:2] == b"\xff\xd8"
        self._orientation = _orientation(data) if self._is_jpeg else 1
        self._decoded: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as displayed. Raises CorruptImage."""
        if not self._is_jpeg:
            return self.decode().shape[:2]
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(self.data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: no colour space found
            raise self._corrupt(f"no complete JPEG header ({error})") from error
        return (width, height) if self._orientation >= 5 else (height, width)

    def decode(self, at_least: tuple[int, int] | None = None, fast: bool = False) -> np.ndarray:
        """Decodes the image.

        Args:
          fast: libjpeg-turbo's faster DCT and its plain chroma upsampling, a fifth less time;
            on photographs of 500 x 375 px the result is off by about 1.4 of 255 levels in the mean.
          at_least: (height, width); a JPEG may come out smaller than it is, at k/8 of its size with
            k <= 4, as long as it is at least this large: the rest of the DCT is never computed.

        Returns:
          uint8[height, width, 3], RGB.

        Raises:
          CorruptImage: truncated, damaged, empty, or not an image.
        """
        if not self._is_jpeg:
            if self._decoded is None:
                self._decoded = self._decode_other()
            return self._decoded
        options = {"colorspace": "RGB", "fastdct": fast, "fastupsample": fast}
        if at_least is not None:
            height, width = at_least if self._orientation < 5 else at_least[::-1]
            options |= {"min_height": height, "min_width": width, "min_factor": 2}
        try:
            image = simplejpeg.decode_jpeg(self.data, **options)
        except ValueError as error:
            if _HARMLESS not in str(error):
                raise self._corrupt(str(error)) from error
            image = simplejpeg.decode_jpeg(self.data, strict=False, **options)
        return _upright(image, self._orientation)

    def _decode_other(self) -> np.ndarray:
        image = None
        if self.data:
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise self._corrupt("truncated, or not an image" if self.data else "the file is empty")
        return image

    def _corrupt(self, reason: str) -> CorruptImage:
        return CorruptImage(
            f"Cannot decode {self.path}: {reason}. Expected a complete JPEG, PNG, WebP, GIF, TIFF "
            "or BMP image. Replace or remove the file, or skip such files with "
            "config.data.on_corrupt='skip'."
        )


def read(path: str) -> Encoded:
    """Reads an image file without decoding it; raises OSError naming the path."""
    with open(path, "rb", buffering=0) as file:
        return Encoded(file.read(), path)


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 where there is none."""
    if not _has_exif(data):
        return 1
    try:
        value = Image.open(io.BytesIO(data)).getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata is no damage to the picture
        return 1
    return value if value in range(1, 9) else 1


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the image is EXIF data."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # start of scan
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation: 5 to 8 are transposed, 2, 3, 7, 8 ... mirrored."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
