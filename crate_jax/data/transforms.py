"""Crops, flips and RandAugment on one uint8 image; run in the input workers, NumPy only.

Normalisation, mixup and cutmix act on batches and run on the device (`mixing.py`).
"""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from crate_jax.data.decode import Encoded

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILL = (124, 116, 104)  # ImageNet's mean, which RandAugment's geometry brings in from outside


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Crop, flip, RandAugment, in this order: what `train_iterator` takes as `transform`.

    Args:
        size: side of the result, px.
        crop: "random" (`random_resized_crop`), "centre" (`resize_centre_crop`, the recipe of
            CRATE's ImageNet-21k training) or "none" (the images have one size already).
        scale: least and most area of the random crop, as a fraction of the image's.
        resize: short side before the centre crop, px.
        flip: mirror half of the images.
        randaugment_layers: operations in a row; 0: none.
        randaugment_magnitude: 0 to 10.
        fast_jpeg: decode JPEGs for random crops faster and less exactly (`Encoded.decode`).
    """

    size: int
    crop: str = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    resize: int = 256
    flip: bool = True
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    fast_jpeg: bool = False

    def __post_init__(self):
        if self.crop not in ("random", "centre", "none"):
            raise ValueError(f"crop: expected 'random', 'centre' or 'none', got {self.crop!r}")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale: expected a range within (0, 1], got {self.scale}")
        if self.crop == "centre":
            _check_resize(self.size, self.resize, "bilinear")
        if not 0 <= self.randaugment_magnitude <= 10:
            raise ValueError(
                f"randaugment_magnitude: expected 0 to 10, got {self.randaugment_magnitude}"
            )

    def __call__(self, image: np.ndarray | Encoded, rng: np.random.Generator) -> np.ndarray:
        """uint8[h, w, 3] or an encoded image -> uint8[size, size, 3]."""
        if self.crop == "random":
            image = random_resized_crop(image, rng, self.size, self.scale, fast_jpeg=self.fast_jpeg)
        elif self.crop == "centre":
            image = resize_centre_crop(image, self.size, self.resize)
        else:
            image = _pixels(image)
            if image.shape[:2] != (self.size, self.size):
                raise ValueError(
                    f"data.crop=none: expected images of {self.size} x {self.size} px, got "
                    f"{image.shape[0]} x {image.shape[1]} (height x width); set data.crop to "
                    "random or centre, or data.image_size to theirs"
                )
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1)
        if self.randaugment_layers:
            image = rand_augment(image, rng, self.randaugment_layers, self.randaugment_magnitude)
        return image


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """`resize_centre_crop` as a `transform`; the random generator is not used."""

    size: int
    resize: int = 256
    resampling: str = "bilinear"

    def __post_init__(self):
        _check_resize(self.size, self.resize, self.resampling)

    def __call__(self, image: np.ndarray | Encoded, rng: np.random.Generator) -> np.ndarray:
        """uint8[h, w, 3] or an encoded image -> uint8[size, size, 3]."""
        del rng
        return resize_centre_crop(image, self.size, self.resize, self.resampling)


def sample_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random box by the law of the Inception crop (arXiv 1409.4842, as in torchvision).

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, place uniform; up to ten draws
    until the box fits, then the central box of the nearest aspect ratio.

    Returns:
        (top, left, height, width) in pixels.
    """
    for area, shape, down, right in rng.random((10, 4)).tolist():
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = ratio[0] * (ratio[1] / ratio[0]) ** shape
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 1 <= h <= height and 1 <= w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = height, width
    if width < height * ratio[0]:
        h = round(width / ratio[0])
    elif width > height * ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    image: np.ndarray | Encoded,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    fast_jpeg: bool = False,
) -> np.ndarray:
    """A random box (`sample_crop`) resized to size x size, antialiased.

    A JPEG whose box is at least four times as large as the result is decoded at reduced size, the
    box to no less than twice the result, so that rounding moves it by a quarter of a pixel of the
    result at most. Where the box is at least twice the result, areas are averaged; else (the usual
    case, in which no pixel is passed over) resizing is bilinear, at a fifth of the time.
    torchvision uses a triangle filter throughout.

    Returns:
        uint8[size, size, 3].
    """
    height, width = image.size if isinstance(image, Encoded) else image.shape[:2]
    top, left, h, w = sample_crop(rng, height, width, scale, ratio)
    if isinstance(image, Encoded):
        at_least = None
        if min(h, w) >= 4 * size:
            at_least = (math.ceil(2 * height * size / h), math.ceil(2 * width * size / w))
        image = image.decode(at_least, fast=fast_jpeg)
        top, h = _scaled(top, h, image.shape[0] / height)
        left, w = _scaled(left, w, image.shape[1] / width)
    box = image[top : top + h, left : left + w]
    interpolation = cv2.INTER_AREA if min(box.shape[:2]) >= 2 * size else cv2.INTER_LINEAR
    return cv2.resize(box, (size, size), interpolation=interpolation)


def resize_centre_crop(
    image: np.ndarray | Encoded, size: int, resize: int = 256, resampling: str = "bilinear"
) -> np.ndarray:
    """Resizes the short side to `resize` and cuts the central size x size.

    Pillow's antialiased resampling and torchvision's rounding (Resize, CenterCrop), because
    published accuracies depend on them.

    Args:
        image: uint8[h, w, 3], or an encoded image.
        size: px.
        resize: px, at least `size`.
        resampling: "bilinear", "bicubic" or "lanczos".

    Returns:
        uint8[size, size, 3].

    Raises:
        ValueError: resize < size, or an unknown resampling.
    """
    _check_resize(size, resize, resampling)
    image = _pixels(image)
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = resize * height // short, resize * width // short
    if image.shape[:2] != (height, width):
        picture = Image.fromarray(image).resize((width, height), _RESAMPLING[resampling])
        image = np.asarray(picture)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, layers: int = 2, magnitude: float = 9.0
) -> np.ndarray:
    """RandAugment (arXiv 1909.13719) as CRATE-alpha's code has it, which follows timm's.

    `layers` times an operation is drawn, uniform among 15, and acts with probability 1/2. Its
    strength is s = m / 10 with m from a normal about `magnitude` of deviation 0.5, and its sign
    random: rotation by 30 s degrees about the centre; shear by 0.3 s about the top left corner;
    translation by 100/224 s of the side (100 s px at 224 px); brightness, colour, contrast and
    sharpness by a factor of 1 +- 0.9 s, at least 0.1; posterize to 4 - int(4 s) bits, at least 1;
    solarize from 256 - int(256 s); SolarizeAdd int(110 s) below 128; autocontrast, equalize and
    invert have no strength. What enters from outside is (124, 116, 104).

    Deviation: contrast is relative to the image's mean grey, as Pillow's and timm's; theirs is
    relative to a constant, the number of pixels / 256 (196 at 224 px).

    Args:
        image: uint8[h, w, 3].
        rng: generator.
        layers: operations in a row.
        magnitude: 0 to 10.

    Returns:
        uint8[h, w, 3].
    """
    picture = Image.fromarray(image)
    for _ in range(layers):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        strength = max(0.0, rng.normal(magnitude, 0.5) / 10)
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            picture = operation(picture, strength, sign)
    return np.array(picture)


def _affine(picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float):
    """Pixel (x, y) of the result, counted from the top left one, is (ax + by + c, dx + ey + f)."""
    half = 0.5 - 0.5 * (a + b), 0.5 - 0.5 * (d + e)  # Pillow counts from that pixel's corner
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        (a, b, c + half[0], d, e, f + half[1]),
        resample=Image.Resampling.BILINEAR,
        fillcolor=_FILL,
    )


def _rotate(picture: Image.Image, s: float, sign: int) -> Image.Image:
    return picture.rotate(sign * 30 * s, Image.Resampling.BILINEAR, fillcolor=_FILL)


def _solarize_add(picture: Image.Image, s: float, sign: int) -> Image.Image:
    del sign
    return picture.point([min(255, x + int(110 * s)) if x < 128 else x for x in range(256)] * 3)


def _enhance(enhancer):
    return lambda picture, s, sign: enhancer(picture).enhance(max(0.1, 1 + sign * 0.9 * s))


_REACH = 100 / 224  # of a translation at full strength, as a part of the side
_OPERATIONS = (
    lambda picture, s, sign: ImageOps.autocontrast(picture),
    lambda picture, s, sign: ImageOps.equalize(picture),
    lambda picture, s, sign: ImageOps.invert(picture),
    _rotate,
    lambda picture, s, sign: ImageOps.posterize(picture, max(1, 4 - int(4 * s))),
    lambda picture, s, sign: ImageOps.solarize(picture, 256 - int(256 * min(1, s))),
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda picture, s, sign: _affine(picture, 1, sign * 0.3 * s, 0, 0, 1, 0),
    lambda picture, s, sign: _affine(picture, 1, 0, 0, sign * 0.3 * s, 1, 0),
    lambda picture, s, sign: _affine(picture, 1, 0, sign * _REACH * s * picture.width, 0, 1, 0),
    lambda picture, s, sign: _affine(picture, 1, 0, 0, 0, 1, sign * _REACH * s * picture.height),
)


def _pixels(image: np.ndarray | Encoded) -> np.ndarray:
    return image.decode() if isinstance(image, Encoded) else image


def _scaled(start: int, length: int, factor: float) -> tuple[int, int]:
    """An interval of pixels in an image that was shrunk by `factor`."""
    first, last = round(start * factor), round((start + length) * factor)
    return first, last - first


def _check_resize(size: int, resize: int, resampling: str) -> None:
    if resize < size:
        raise ValueError(
            f"resize: expected at least the size of the crop, got {resize} for a crop of "
            f"{size}; {round(size * 256 / 224)} keeps the usual ratio."
        )
    if resampling not in _RESAMPLING:
        raise ValueError(f"resampling: expected one of {sorted(_RESAMPLING)}, got {resampling!r}")
