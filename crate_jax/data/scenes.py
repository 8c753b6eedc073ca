"""The embedded dataset: clothing photographs on photographs, with exact masks.

A scene is a crop of a real photograph (`photographs.py`) on which one to a few garments of
Fashion-MNIST (MIT licence, `assets/`) are pasted, tinted, at random place and size. The label is
the garment, the ground-truth mask its visible silhouette. A scene is a function of (seed, split,
index) and of the options alone: random access, any length, no download.
Training and validation share neither garments nor photographs.
"""

import colorsys
import dataclasses
import functools
import importlib.resources
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

from crate_jax.data import randomness
from crate_jax.data.photographs import load, names

CLASS_NAMES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MAX_LENGTH = 2**31 - 1  # the shuffle of the loader counts in 32 bits

_STREAMS = {"train": randomness.SCENES_TRAIN, "val": randomness.SCENES_VAL}
_ALIASES = {"test": "val", "validation": "val"}
_THRESHOLD = 8  # of 255: the studio background is 0, with compression noise of a few units
_OPEN_CLASSES = (5, 8)  # sandals and bags: a hole is an opening (strap, handle), not dark cloth
_SHADE_FLOOR = 0.15  # darkest shade, as a fraction of the tint: black cloth keeps its outline
_MAX_OVERLAP = 0.3  # of a garment's frame covered by another's: try again, up to _TRIES places
_TRIES = 8


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Random-access source of composed scenes.

    `scenes[i]` is a dict with `image` uint8[size, size, 3] (RGB), `label` int32, `mask`
    bool[size, size] and `index` int64. With several garments `label` is the class of the largest
    visible one and `mask` the union; `instances(i)` has each alone.

    Args:
      split: "train" (1,000 garments a class, 8 photographs) or "val", also called "test" (200 a
        class, 4 other photographs).
      image_size: side in pixels, at least 16.
      length: number of scenes, up to 2^31 - 1; None: one for each garment (10,000 or 2,000). Scene
        i shows garment i modulo their number in an order that is shuffled and balanced over the
        classes, so a longer set shows the same garments in new scenes.
      seed: 0 <= seed < 2^63.
      objects: least and most garments in a scene.
      scale: range of the side of a garment's 28 x 28 frame as a fraction of the image's side, in
        (0, 1]; a garment fills 0.1 to 0.6 of its frame.
      place: range, in [0, 1], of the frame's position along each axis, as a fraction of the free
        room: (0, 1) is anywhere inside the image, (0.5, 0.5) the centre.
      saturation: range, in [0, 1], of the saturation of a garment's random tint.
      brightness: range, in (0, 1], of the value of the tint.
      zoom: range of photograph pixels per image pixel of the background crop, at least 1; limited
        by the photograph's size.
      contrast: range, in [0, 1], of the factor on the background's deviation from its mean colour.
      distractors: least and most pieces (ellipses and rectangles) of another photograph of the
        split that are pasted below the garments.
      photographs: names from `photographs.PHOTOGRAPHS` to use instead of all of the split.

    Raises:
      ValueError: an option out of its range.
    """

    split: str
    image_size: int = 32
    length: int | None = None
    seed: int = 0
    objects: tuple[int, int] = (1, 1)
    scale: tuple[float, float] = (0.5, 0.75)
    place: tuple[float, float] = (0.0, 1.0)
    saturation: tuple[float, float] = (0.0, 0.8)
    brightness: tuple[float, float] = (0.6, 1.0)
    zoom: tuple[float, float] = (1.0, 6.0)
    contrast: tuple[float, float] = (0.4, 1.0)
    distractors: tuple[int, int] = (0, 0)
    photographs: tuple[str, ...] = ()

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    has_masks = True

    def __post_init__(self):
        split = _ALIASES.get(self.split, self.split)
        if split not in _STREAMS:
            raise ValueError(f"split must be 'train', 'val' or 'test', got {self.split!r}.")
        object.__setattr__(self, "split", split)
        randomness.check_seed(self.seed)
        if self.length is None:
            object.__setattr__(self, "length", 10_000 if split == "train" else 2_000)
        if not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"length must be from 1 to 2^31 - 1, or None, got {self.length}.")
        if self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, got {self.image_size}.")
        limits = {
            "objects": (1, 10),
            "scale": (8 / self.image_size, 1.0),  # a garment of under 8 pixels is no garment
            "place": (0.0, 1.0),
            "saturation": (0.0, 1.0),
            "brightness": (0.05, 1.0),
            "zoom": (1.0, 64.0),
            "contrast": (0.0, 1.0),
            "distractors": (0, 16),
        }
        for name, (least, most) in limits.items():
            bounds = tuple(getattr(self, name))  # a config gives lists
            if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
                raise ValueError(
                    f"{name} must be a range (low, high) within [{least:g}, {most:g}], "
                    f"got {bounds}."
                )
            object.__setattr__(self, name, bounds)
        allowed = names(split)
        chosen = tuple(self.photographs) or allowed
        if unknown := [name for name in chosen if name not in allowed]:
            raise ValueError(
                f"photographs {unknown} are not among those of the split {split!r}: {allowed}."
            )
        object.__setattr__(self, "photographs", chosen)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The scene `index` as a dict of `image`, `label`, `mask`, `index`."""
        image, masks, labels = self._compose(index)
        largest = np.argmax([np.count_nonzero(mask) for mask in masks])
        return {
            "image": image,
            "label": labels[largest],
            "mask": masks.any(0),
            "index": np.int64(index),
        }

    def instances(self, index: int) -> dict[str, np.ndarray]:
        """The garments of scene `index`, the lowest first.

        Returns:
          `masks` bool[k, size, size], what is visible of each; `labels` int32[k]; `boxes`
          int32[k, 4], the tight box of each mask as (left, top, right, bottom), the last two
          exclusive. Garments that others hide wholly are left out.
        """
        _, masks, labels = self._compose(index)
        boxes = np.zeros((len(masks), 4), np.int32)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return {"masks": masks, "labels": labels, "boxes": boxes}

    def object_fraction(self, samples: int = 512) -> float:
        """Mean over the first `samples` scenes of the fraction of pixels that garments cover."""
        return float(np.mean([self[i]["mask"].mean() for i in range(min(samples, len(self)))]))

    def garment(self, index: int) -> int:
        """Row, in the split's garments, of the (lowest) one that scene `index` shows."""
        order = _balanced_order(self.split, self.seed)
        return int(order[index % len(order)])

    def _compose(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = randomness.generator(self.seed, _STREAMS[self.split], 0, int(index))
        image = self._background(rng)
        garments, silhouettes, labels = clothing(self.split)
        count = _integer(rng.random(), *self.objects)
        first = self.garment(index)
        rows = [first, *rng.integers(len(labels), size=count - 1)]
        masks = np.zeros((count, self.image_size, self.image_size), bool)
        frames = []
        for row, mask in zip(rows, masks, strict=True):
            side, top, left = self._frame(rng, frames)
            frames.append((side, top, left))
            colour = _tint(rng.random(3), self.saturation, self.brightness)
            area = np.s_[top : top + side, left : left + side]
            covered = paste(image[area], garments[row], silhouettes[row], colour) >= 0.5
            masks[:, *area] &= ~covered  # what this garment hides of those below
            mask[area] = covered
        seen = masks.any((1, 2))
        return image, masks[seen], labels[rows][seen].astype(np.int32)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a photograph's crop and the distractors: uint8[size, size, 3]."""
        draws = rng.random(10)
        canvas = self._crop(draws[:9])
        for _ in range(_integer(draws[9], *self.distractors)):
            draws = rng.random(15)
            piece = self._crop(draws[:9])
            alpha = _piece(draws[9:], self.image_size)[..., None]
            canvas = np.rint(canvas + alpha * (piece.astype(np.float32) - canvas)).astype(np.uint8)
        return canvas

    def _crop(self, draws: np.ndarray) -> np.ndarray:
        """A crop of a photograph, from nine uniform draws: uint8[size, size, 3]."""
        size = self.image_size
        name = self.photographs[_integer(draws[0], 0, len(self.photographs) - 1)]
        photo = load(name, short_side=round(size * self.zoom[1]))
        height, width = photo.shape[:2]
        # log-uniform, so that halving and doubling the grain of the texture are equally likely
        side = size * self.zoom[0] * (self.zoom[1] / self.zoom[0]) ** draws[1]
        side = min(round(side), height, width)
        top, left = int(draws[2] * (height - side + 1)), int(draws[3] * (width - side + 1))
        crop = photo[top : top + side, left : left + side]
        crop = cv2.resize(crop, (size, size), interpolation=_interpolation(side, size))
        if draws[4] < 0.5:
            crop = cv2.flip(crop, 1)
        # tint (gives the grey photographs colour) and contrast as one affine map of the channels
        contrast = self.contrast[0] + draws[5] * (self.contrast[1] - self.contrast[0])
        tint = _tint(draws[6:9], (0.0, 0.4), (0.7, 1.0))
        offset = (1 - contrast) * tint * cv2.mean(crop)[:3]
        return cv2.transform(crop, np.column_stack([np.diag(contrast * tint), offset]))

    def _frame(self, rng: np.random.Generator, others: list) -> tuple[int, int, int]:
        """Side, top and left of the next garment; avoids covering the others by a third or more."""
        fraction = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        side = min(round(fraction * self.image_size), self.image_size)
        low, high = self.place
        draws = low + (high - low) * rng.random((_TRIES if others else 1, 2))
        places = np.rint(draws * (self.image_size - side)).astype(int)
        overlaps = [max((_overlap((side, *p), o) for o in others), default=0.0) for p in places]
        free = [i for i, overlap in enumerate(overlaps) if overlap <= _MAX_OVERLAP]
        best = free[0] if free else int(np.argmin(overlaps))
        return side, int(places[best, 0]), int(places[best, 1])


def write_folder(root: str | os.PathLike, scenes: Scenes, classes: Sequence[str] = ()) -> int:
    """Writes scenes as PNG files in class folders, ROOT/SPLIT/CLASS/NUMBER.png.

    `write_folder(root, Scenes("train", ...))` and the same with "val" make a folder that
    `config.data.name = "folder"` reads. Masks are not written.

    Args:
        root: the folder; made where absent.
        scenes: what to write; its split is the folder's.
        classes: names from CLASS_NAMES to keep; all if empty.

    Returns:
        How many files.

    Raises:
        ValueError: a class that there is not.
    """
    if unknown := set(classes) - set(CLASS_NAMES):
        raise ValueError(f"classes: expected some of {CLASS_NAMES}, got {sorted(unknown)}")
    kept = set(classes or CLASS_NAMES)
    written = 0
    for index in range(len(scenes)):
        scene = scenes[index]
        name = CLASS_NAMES[scene["label"]]
        if name in kept:
            folder = pathlib.Path(root, scenes.split, name)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene["image"]).save(folder / f"{index:06d}.png")
            written += 1
    return written


@functools.lru_cache(maxsize=2)
def clothing(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The garments of a split.

    Returns:
      images uint8[n, 28, 28] (grey, 0 outside), silhouettes bool[n, 28, 28], labels uint8[n]; n is
      10,000 for "train" and 2,000 for "val".
    """
    prefix = "train" if split == "train" else "test"
    asset = importlib.resources.files("crate_jax.data") / "assets" / "fashion_mnist_subset.npz"
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    return images, silhouettes(images, labels), labels


def silhouettes(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Outlines of garments that were photographed before a black background.

    Grey above 8 of 255; of its 8-connected components the largest and those of at least a tenth of
    its size (soles, stripes), which drops specks; holes filled, because dark cloth is as black as
    the background. Sandals and bags keep their holes: openings between straps and under handles,
    through which the background shows.

    Args:
      images: uint8[n, height, width].
      labels: uint8[n], classes in the order of `CLASS_NAMES`.

    Returns:
      bool[n, height, width].
    """
    # All images at once, as a volume whose slices do not touch.
    within = np.zeros((3, 3, 3), bool)
    within[1] = True
    parts, count = ndimage.label(images > _THRESHOLD, within)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    sizes = sizes[parts]
    outline = sizes > sizes.max((1, 2), keepdims=True) / 10

    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True
    padded = np.pad(outline, ((0, 0), (1, 1), (1, 1)))
    outside, _ = ndimage.label(~padded, cross)
    filled = (outside != outside[:, :1, :1])[:, 1:-1, 1:-1]
    opened = np.isin(labels, _OPEN_CLASSES)[:, None, None]
    return np.where(opened, outline, filled)


def paste(
    area: np.ndarray, garment: np.ndarray, silhouette: np.ndarray, colour: np.ndarray
) -> np.ndarray:
    """Paints a garment over `area` in place and returns its coverage.

    Colour times coverage and coverage are resized by the same antialiasing kernel (area averages
    when shrinking, bilinear when enlarging) and composed as area (1 - alpha) + alpha colour, so no
    black of the studio leaks into the rim.

    Args:
      area: uint8[side, side, 3], written.
      garment: uint8[28, 28].
      silhouette: bool[28, 28].
      colour: f[3] in [0, 1], what white cloth becomes.

    Returns:
      alpha float32[side, side] in [0, 1]; the mask is alpha >= 0.5.
    """
    shade = (_SHADE_FLOOR * 255 + (1 - _SHADE_FLOOR) * garment) * silhouette
    layers = cv2.merge([shade.astype(np.float32), silhouette.astype(np.float32)])
    side = area.shape[0]
    layers = cv2.resize(layers, (side, side), interpolation=_interpolation(len(garment), side))
    alpha = layers[..., 1]
    painted = (1 - alpha)[..., None] * area + layers[..., :1] * colour.astype(np.float32)
    area[:] = np.rint(painted, out=painted)
    return alpha


@functools.lru_cache(maxsize=8)
def _balanced_order(split: str, seed: int) -> np.ndarray:
    """A shuffled order of the garments in which every ten in a row show ten classes."""
    labels = clothing(split)[2]
    rng = randomness.generator(seed, randomness.SCENES_ORDER, 0, _STREAMS[split])
    by_class = np.stack([rng.permutation(np.flatnonzero(labels == c)) for c in range(10)], 1)
    return rng.permuted(by_class, axis=1).ravel()


def _integer(draw: float, low: int, high: int) -> int:
    """A uniform integer in [low, high] from a uniform draw in [0, 1)."""
    return low + int(draw * (high - low + 1))


def _interpolation(source: int, target: int) -> int:
    return cv2.INTER_AREA if target < source else cv2.INTER_LINEAR


def _tint(draws: np.ndarray, saturation: tuple, value: tuple) -> np.ndarray:
    """A colour from three uniform draws (hue, saturation, value): float64[3] in [0, 1]."""
    hue, depth, light = draws.tolist()
    depth = saturation[0] + depth * (saturation[1] - saturation[0])
    light = value[0] + light * (value[1] - value[0])
    return np.array(colorsys.hsv_to_rgb(hue, depth, light))


def _overlap(frame: tuple, other: tuple) -> float:
    """Intersection of two square frames (side, top, left) over the area of the smaller."""
    extent = [
        min(frame[i] + frame[0], other[i] + other[0]) - max(frame[i], other[i]) for i in (1, 2)
    ]
    return max(extent[0], 0) * max(extent[1], 0) / min(frame[0], other[0]) ** 2


def _piece(draws: np.ndarray, size: int) -> np.ndarray:
    """Coverage, float32[size, size], of a rotated ellipse or rectangle, from six uniform draws."""
    alpha = np.zeros((size, size), np.uint8)
    centre, extent = draws[:2] * size, size * (0.2 + 0.3 * draws[2:4])
    box = (tuple(centre), tuple(extent), draws[4] * 180)
    if draws[5] < 0.5:
        cv2.ellipse(alpha, box, 255, -1, cv2.LINE_AA)
    else:
        corners = np.rint(cv2.boxPoints(box) * 16).astype(np.int32)
        cv2.fillPoly(alpha, [corners], 255, cv2.LINE_AA, shift=4)
    return alpha.astype(np.float32) / 255
