"""The embedded dataset: rendered objects on photographs and textures, with exact masks.

A scene is a crop of a photograph (`photographs`) or of a computed texture (`textures`) with one to
a few objects (`objects`) on it, turned, mirrored and of changed size, light and hue, anywhere. The
label is the object, the ground-truth mask its visible silhouette. A scene is a function of (seed,
split, index) and of the options alone: random access, any length, no download. Training and
validation share objects, but neither photographs nor textures nor poses nor colours.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from crate_jax.data import backgrounds, objects, photographs, randomness
from crate_jax.data.objects import Pose

MAX_LENGTH = 2**31 - 1  # the shuffle of the loader counts in 32 bits
SHOWN = ("learned", "held_out", "all")

_STREAMS = {"train": randomness.SCENES_TRAIN, "val": randomness.SCENES_VAL}
_ALIASES = {"test": "val", "validation": "val"}
_LEAST_SIDE, _MOST_SIDE = 32, 224  # px, of a scene
_LEAST_OBJECT = 8  # px, its longer side; a smaller one is no object
_CELLS = 16  # into which the range of a pose or colour is cut, each shared by the two splits
_MAX_OVERLAP = 0.3  # of an object's box covered by another's: try again, up to _TRIES places
_TRIES = 8
_MAX_HIDDEN = 0.5  # of an object's pixels: a piece that hides more is left out


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Random-access source of composed scenes.

    `scenes[i]` is a dict with `image` uint8[size, size, 3] (RGB), `label` int32, `mask`
    bool[size, size] and `index` int64. With several objects `label` is the class of the largest
    visible one and `mask` the union; `instances(i)` has each alone.

    Args:
        split: "train" or "val", also called "test".
        image_size: side in pixels, 32 to 224.
        length: number of scenes, up to 2^31 - 1; None: 10,000 ("train") or 2,000 ("val"). Scene i
            shows class i modulo the number of classes shown, in an order shuffled by `seed`.
        seed: 0 <= seed < 2^63.
        classes: the objects that have a label: the first so many of `objects.table()`, 0 for all,
            or names.
        held_out: classes that no training scene shows: the last so many of `classes`, or names, or
            a text of either with commas between. They keep their labels.
        shown: what a scene of "val" shows: the classes that training shows ("learned"), exactly
            those held out ("held_out"), or "all". Training scenes show those learned.
        objects: least and most objects in a scene, 1 to 10.
        scale: range of an object's longer side as a fraction of the image's side; at least 8 px.
        place: range, in [0, 1], of the position along each axis of the box around an object, as a
            fraction of the free room: (0, 1) is anywhere inside the image, (0.5, 0.5) the centre.
        rotation: degrees, 0 to 180, by which an object is turned at most, either way. Half of them
            are mirrored.
        brightness: range, in [0.05, 2], of the factor on an object's colours.
        hue: degrees, 0 to 180, by which an object's hue is turned at most, either way.
        leaves, noise: share of the backgrounds that are dead leaves and 1/f noise; the rest are
            photographs.
        zoom: range of photograph pixels per image pixel of the background, at least 1; limited by
            the photograph's size.
        contrast: range, in [0, 1], of the factor on the background's deviation from its mean
            colour.
        distractors: least and most pieces (ellipses and rectangles) of other backgrounds of the
            split that are pasted below the objects.
        occluders: least and most such pieces above the objects. One that would hide more than half
            of what is to be seen of an object is left out.
        photographs: names from `photographs.PHOTOGRAPHS` to use instead of all of the split.

    Attributes:
        class_names: names of the classes by label.
        num_classes: how many.
        held_out_names: those that no training scene shows.

    Raises:
        ValueError: an option out of its range, an unknown name, a damaged file.
        FileNotFoundError: the objects or a photograph are missing.
    """

    split: str
    image_size: int = 64
    length: int | None = None
    seed: int = 0
    classes: int | str | tuple[str, ...] = 100
    held_out: int | str | tuple[str, ...] = ""
    shown: str = "learned"
    objects: tuple[int, int] = (1, 1)
    scale: tuple[float, float] = (0.3, 0.55)
    place: tuple[float, float] = (0.0, 1.0)
    rotation: float = 20.0
    brightness: tuple[float, float] = (0.7, 1.1)
    hue: float = 20.0
    leaves: float = 0.25
    noise: float = 0.15
    zoom: tuple[float, float] = (1.0, 6.0)
    contrast: tuple[float, float] = (0.4, 1.0)
    distractors: tuple[int, int] = (0, 0)
    occluders: tuple[int, int] = (0, 0)
    photographs: tuple[str, ...] = ()

    has_masks = True

    def __post_init__(self):
        split = _ALIASES.get(self.split, self.split)
        if split not in _STREAMS:
            raise ValueError(f"split: expected 'train', 'val' or 'test', got {self.split!r}")
        self._set("split", split)
        randomness.check_seed(self.seed)
        if self.length is None:
            self._set("length", 10_000 if split == "train" else 2_000)
        self._check_ranges()
        self._choose_classes()
        self._choose_backgrounds()
        for name in self._names:  # what is missing is found before any work
            objects.load(name)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_ranges(self) -> None:
        least = {"length": 1, "image_size": _LEAST_SIDE}
        most = {"length": MAX_LENGTH, "image_size": _MOST_SIDE, "rotation": 180, "hue": 180}
        for name in ("length", "image_size", "rotation", "hue", "leaves", "noise"):
            low, high = least.get(name, 0), most.get(name, 1)
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected {low} to {high:,}, got {getattr(self, name)}")
        if self.leaves + self.noise > 1:
            raise ValueError(
                "leaves and noise: expected shares of at most 1 together, got "
                f"{self.leaves} + {self.noise}"
            )
        limits = {
            "objects": (1, 10),
            "scale": (_LEAST_OBJECT / self.image_size, 1.0),
            "place": (0.0, 1.0),
            "brightness": (0.05, 2.0),
            "zoom": (1.0, 64.0),
            "contrast": (0.0, 1.0),
            "distractors": (0, 16),
            "occluders": (0, 16),
        }
        for name, (low, high) in limits.items():
            bounds = tuple(getattr(self, name))  # a config gives lists
            if len(bounds) != 2 or not low <= bounds[0] <= bounds[1] <= high:
                raise ValueError(
                    f"{name}: expected a range (low, high) within {low:g} to {high:g}, got {bounds}"
                )
            self._set(name, bounds)

    def _choose_classes(self) -> None:
        every = tuple(objects.table())
        wanted = len(every) if self.classes == 0 else self.classes
        class_names = objects.choose("classes", wanted, every)
        held_out = objects.choose("held_out", self.held_out, class_names, last=True)
        if self.shown not in SHOWN:
            raise ValueError(f"shown: expected one of {', '.join(SHOWN)}, got {self.shown!r}")
        if self.split == "train" and self.shown != "learned":
            raise ValueError(
                f"shown: expected 'learned' for training scenes, got {self.shown!r}; "
                "take the split 'val'"
            )
        shown = {
            "learned": tuple(name for name in class_names if name not in held_out),
            "held_out": held_out,
            "all": class_names,
        }[self.shown]
        if not shown:
            raise ValueError(
                f"shown: expected a class to show as {self.shown!r}, got {len(held_out)} held out "
                f"of {len(class_names)}; change held_out"
            )
        self._set("class_names", class_names)
        self._set("num_classes", len(class_names))
        self._set("held_out_names", held_out)
        self._set("_names", shown)

    def _choose_backgrounds(self) -> None:
        allowed = photographs.names(self.split)
        chosen = tuple(self.photographs) or allowed
        if unknown := [name for name in chosen if name not in allowed]:
            raise ValueError(
                f"photographs: expected some of {', '.join(allowed)} (split {self.split!r}), "
                f"got {unknown}"
            )
        self._set("photographs", chosen)
        common = ("leaves", "noise", "zoom", "contrast")
        options = {name: getattr(self, name) for name in common}
        source = backgrounds.Backgrounds(self.split, self.image_size, chosen, **options)
        source.check()
        source.check()
        self._set("_backgrounds", source)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The scene `index` as a dict of `image`, `label`, `mask`, `index`."""
        image, masks, labels = self._compose(index)
        largest = np.argmax(np.count_nonzero(masks, (1, 2)))
        return {
            "image": image,
            "label": labels[largest],
            "mask": masks.any(0),
            "index": np.int64(index),
        }

    def instances(self, index: int) -> dict[str, np.ndarray]:
        """The objects of scene `index`, the lowest first.

        Returns:
            `image` uint8[size, size, 3]; `masks` bool[k, size, size], what is visible of each;
            `labels` int32[k]; `boxes` int32[k, 4], the tight box of each mask as (left, top, right,
            bottom), the last two exclusive. Objects that others hide wholly are left out.
        """
        image, masks, labels = self._compose(index)
        boxes = np.zeros((len(masks), 4), np.int32)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return {"image": image, "masks": masks, "labels": labels, "boxes": boxes}

    def object_fraction(self, samples: int = 512) -> float:
        """Mean over the first `samples` scenes of the fraction of pixels that objects cover."""
        return float(np.mean([self[i]["mask"].mean() for i in range(min(samples, len(self)))]))

    def poses(self, index: int) -> list[Pose]:
        """How the objects of scene `index` are drawn, the lowest first."""
        return self._poses(self._generator(index), index)

    def _generator(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return randomness.generator(self.seed, _STREAMS[self.split], 0, int(index))

    def _compose(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = self._generator(index)
        poses = self._poses(rng, index)
        image = self._backgrounds.crop(rng.random(backgrounds.DRAWS))
        for _ in range(_integer(rng.random(), *self.distractors)):
            paste(image, self._piece(rng))
        masks = np.zeros((len(poses), *image.shape[:2]), bool)
        for pose, mask in zip(poses, masks, strict=True):
            left, top, sprite = pose.draw(self.image_size)
            area = np.s_[top : top + sprite.shape[0], left : left + sprite.shape[1]]
            covered = paste(image[area], sprite)
            masks[:, *area] &= ~covered  # what this object hides of those below
            mask[area] = covered
        if self.occluders[1]:
            self._occlude(rng, image, masks)
        labels = np.array([self._labels[pose.name] for pose in poses], np.int32)
        seen = masks.any((1, 2))
        return image, masks[seen], labels[seen]

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def _poses(self, rng: np.random.Generator, index: int) -> list[Pose]:
        count = _integer(rng.random(), *self.objects)
        order = _order(len(self._names), self.split, self.seed)
        others = rng.integers(len(self._names), size=count - 1)
        poses: list[Pose] = []
        for number in (order[index % len(order)], *others):
            poses.append(self._pose(rng, self._names[number], poses))
        return poses

    def _pose(self, rng: np.random.Generator, name: str, others: list[Pose]) -> Pose:
        """Draws size, turn, mirroring, colours and place of the next object of a scene."""
        scale, turn, brightness, hue, mirrored = _apart(rng.random(5), self.split).tolist()
        scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        brightness = self.brightness[0] + brightness * (self.brightness[1] - self.brightness[0])
        turn, hue = (2 * turn - 1) * self.rotation, (2 * hue - 1) * self.hue
        side = scale * self.image_size
        cosine, sine = (f(math.radians(turn)) * side for f in (math.cos, math.sin))
        mirror = -1 if mirrored < 0.5 else 1
        matrix = np.array([[mirror * cosine, -sine], [mirror * sine, cosine]])
        least, most = objects.extent(name, matrix)
        size = most - least
        low, high = self.place
        draws = low + (high - low) * rng.random((_TRIES if others else 1, 2))
        # A turned object may be larger than the image: then it is in the middle, cut on both sides.
        room = self.image_size - size
        places = np.where(room > 0, draws * room, room / 2)
        overlaps = [
            max((_overlap(place, size, o.corner, o.size) for o in others), default=0.0)
            for place in places
        ]
        free = [i for i, overlap in enumerate(overlaps) if overlap <= _MAX_OVERLAP]
        corner = places[free[0] if free else int(np.argmin(overlaps))]
        return Pose(
            name, matrix, tuple(corner - least), tuple(corner), tuple(size), hue, brightness
        )

    def _piece(self, rng: np.random.Generator) -> np.ndarray:
        """A piece of another background, uint8[size, size, 4] as `objects.draw` gives it."""
        draws = rng.random(backgrounds.DRAWS + 6)
        alpha = _shape(draws[backgrounds.DRAWS :], self.image_size)
        crop = self._backgrounds.crop(draws[: backgrounds.DRAWS])
        crop = cv2.multiply(crop, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)
        return cv2.merge([crop, alpha])

    def _occlude(self, rng: np.random.Generator, image: np.ndarray, masks: np.ndarray) -> None:
        """Pastes pieces above the objects, in place, as long as half of each is to be seen."""
        least = (1 - _MAX_HIDDEN) * np.count_nonzero(masks, (1, 2))
        for _ in range(_integer(rng.random(), *self.occluders)):
            piece = self._piece(rng)
            left = masks & (piece[..., 3] < 128)
            if (np.count_nonzero(left, (1, 2)) >= least).all():
                paste(image, piece)
                masks[:] = left


def paste(area: np.ndarray, sprite: np.ndarray) -> np.ndarray:
    """Lays a sprite over `area`, in place: area (1 - alpha) + colours.

    Args:
        area: uint8[h, w, 3], written.
        sprite: uint8[h, w, 4], colours times alpha and alpha (of 255).

    Returns:
        bool[h, w], where the sprite covers at least half of a pixel: its mask.
    """
    alpha = cv2.extractChannel(sprite, 3)
    through = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB)
    colours = cv2.cvtColor(sprite, cv2.COLOR_RGBA2RGB)
    area[:] = cv2.add(cv2.multiply(area, through, scale=1 / 255), colours)
    return alpha >= 128


def write_folder(root: str | os.PathLike, scenes: Scenes) -> int:
    """Writes scenes as PNG files in class folders, ROOT/SPLIT/CLASS/NUMBER.png.

    `write_folder(root, Scenes("train", ...))` and the same with "val" make a folder that
    `config.data.name = "folder"` reads. Masks are not written.

    Args:
        root: the folder; made where absent.
        scenes: what to write; its split is the folder's.

    Returns:
        How many files.
    """
    for index in range(len(scenes)):
        scene = scenes[index]
        folder = pathlib.Path(root, scenes.split, scenes.class_names[scene["label"]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene["image"]).save(folder / f"{index:06d}.png")
    return len(scenes)


@functools.lru_cache(maxsize=16)
def _order(count: int, split: str, seed: int) -> np.ndarray:
    """A shuffled order of the classes that are shown."""
    return randomness.generator(seed, randomness.SCENES_ORDER, 0, _STREAMS[split]).permutation(
        count
    )


def _apart(draws: np.ndarray, split: str) -> np.ndarray:
    """Uniform draws moved into the split's halves of `_CELLS` cells.

    The two splits then never have a value in common, however many scenes are drawn, and both have
    values everywhere.
    """
    cells = np.floor(draws * _CELLS)
    return (cells + (draws * _CELLS - cells + (split == "val")) / 2) / _CELLS


def _integer(draw: float, low: int, high: int) -> int:
    """A uniform integer in [low, high] from a uniform draw in [0, 1)."""
    return low + int(draw * (high - low + 1))


def _overlap(corner: Sequence, size: Sequence, other: Sequence, others: Sequence) -> float:
    """Intersection of two boxes over the area of the smaller."""
    shared = [
        min(a + length, b + width) - max(a, b)
        for a, length, b, width in zip(corner, size, other, others, strict=True)
    ]
    least = min(size[0] * size[1], others[0] * others[1])
    return max(shared[0], 0.0) * max(shared[1], 0.0) / least


def _shape(draws: np.ndarray, size: int) -> np.ndarray:
    """Alpha, uint8[size, size], of a turned ellipse or rectangle, from six uniform draws."""
    alpha = np.zeros((size, size), np.uint8)
    centre, extent = draws[:2] * size, size * (0.2 + 0.3 * draws[2:4])
    box = (tuple(centre), tuple(extent), draws[4] * 180)
    if draws[5] < 0.5:
        cv2.ellipse(alpha, box, 255, -1, cv2.LINE_AA)
    else:
        corners = np.rint(cv2.boxPoints(box) * 16).astype(np.int32)
        cv2.fillPoly(alpha, [corners], 255, cv2.LINE_AA, shift=4)
    return alpha
