"""The objects of `scenes`: rendered animals, plants, food, vehicles and things, with exact alpha.

Microsoft's Fluent emoji in the 3D style (MIT licence, `assets/`), the longer side of each 128 px.
How they were chosen is told in `assets/README.md`; `assets/objects.csv` lists them. The first
hundred are the best known, of all categories in turn.
"""

import csv
import dataclasses
import difflib
import functools
import importlib.resources
import io
import math
import zipfile
from collections.abc import Sequence

import cv2
import numpy as np

CATEGORIES = ("animal", "plant", "food", "vehicle", "thing")
SIDE = 128  # px, the longer side of every object
# Sides, in pixels, in which objects are kept for drawing: each 2^(1/3) of the next, so that a
# bilinear warp never shrinks by more than a quarter and needs no prefilter.
_SIDES = tuple(round(SIDE / 2 ** (step / 3)) for step in range(14))
_ASSETS = importlib.resources.files("crate_jax.data") / "assets"
_REINSTALL = "reinstall crate_jax, which brings it"


@dataclasses.dataclass(frozen=True)
class Object:
    """An object's name, category (one of `CATEGORIES`) and file in `assets/objects.zip`."""

    name: str
    category: str
    file: str


@functools.cache
def table() -> dict[str, Object]:
    """All objects by name, in the order in which `Scenes(classes=N)` takes them.

    Raises:
        FileNotFoundError: the list is missing.
    """
    path = _ASSETS / "objects.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the list of objects, got no file; {_REINSTALL}")
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return {row["name"]: Object(**row) for row in rows}


def choose(
    what: str, wanted: int | str | Sequence[str], among: Sequence[str], last: bool = False
) -> tuple[str, ...]:
    """Some of `among`: the first or last so many, or those named, in the order given.

    Args:
        what: the option's name, for errors.
        wanted: a number, names, or either as a text (names with commas between).
        among: the names there are.
        last: a number counts from the end.

    Raises:
        ValueError: more than there are, or a name that is not there or is there twice.
    """
    if isinstance(wanted, str):
        parts = [part.strip() for part in wanted.split(",") if part.strip()]
        wanted = int(parts[0]) if len(parts) == 1 and parts[0].isdecimal() else parts
    if isinstance(wanted, int | np.integer):
        if not 0 <= wanted <= len(among):
            raise ValueError(
                f"{what}: expected 0 to {len(among)}, the number of objects there are, got {wanted}"
            )
        return tuple(among[len(among) - wanted :] if last else among[:wanted])
    for name in wanted:
        if name not in among:
            near = difflib.get_close_matches(str(name), among, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{what}: expected names among the {len(among)} objects there are "
                f"({', '.join(among[:3])}, ...), got {name!r}{hint}"
            )
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"{what}: expected every name once, got {list(wanted)}")
    return tuple(wanted)


@functools.lru_cache(maxsize=1024)
def load(name: str) -> np.ndarray:
    """An object's pixels, cut to what is not transparent.

    Returns:
        uint8[height, width, 4], read-only: red, green, blue (each times alpha / 255) and alpha. The
        longer side is `SIDE`.

    Raises:
        FileNotFoundError: the file of objects is missing.
        ValueError: it is damaged.
    """
    file = table()[name].file
    pixels = cv2.imdecode(np.frombuffer(_files().get(file, b""), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4 or max(pixels.shape) != SIDE:
        raise ValueError(
            f"{_archive()}: expected a picture of {name} with alpha in {file}, got none; "
            f"{_REINSTALL}"
        )
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    alpha = cv2.cvtColor(pixels[..., 3], cv2.COLOR_GRAY2RGB)
    pixels[..., :3] = cv2.multiply(pixels[..., :3], alpha, scale=1 / 255)
    pixels.setflags(write=False)
    return pixels


def extent(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box around an object's silhouette (alpha at least one half) in a pose.

    Args:
        matrix: f[2, 2], from the object's coordinates (its longer side is 1, the origin the middle
            of its picture) to pixels: rotation, mirroring, scale.

    Returns:
        (left, top) and (right, bottom), f[2] each, in pixels from the picture's middle.
    """
    corners = _outline(name) @ matrix.T
    return corners.min(0), corners.max(0)


def draw(
    name: str, matrix: np.ndarray, centre: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """An object in a pose, antialiased.

    Args:
        matrix: as in `extent`.
        centre: (x, y) of the picture's middle, in pixels of the result.
        size: (width, height) of the result.

    Returns:
        uint8[height, width, 4]: colours times alpha, and alpha.
    """
    (a, b), (c, d) = matrix.tolist()
    side = math.sqrt(abs(a * d - b * c))
    level, across, down = _level(name, next((s for s in reversed(_SIDES) if s >= side), SIDE))
    a, b, c, d = a / across, b / down, c / across, d / down
    # Pixel k covers k to k + 1: its middle is at k + 1/2, in both pictures.
    x, y = (level.shape[1] - 1) / 2, (level.shape[0] - 1) / 2
    warp = ((a, b, centre[0] - 0.5 - a * x - b * y), (c, d, centre[1] - 0.5 - c * x - d * y))
    return cv2.warpAffine(level, np.array(warp), size, flags=cv2.INTER_LINEAR)


@dataclasses.dataclass(frozen=True)
class Pose:
    """An object in a scene; lengths in pixels of the scene.

    Attributes:
        name: of the object.
        matrix: f[2, 2], from the object's coordinates to pixels (`extent`).
        centre: (x, y) of the middle of its picture.
        corner: (left, top) of the box around its silhouette.
        size: (width, height) of that box.
        hue: degrees by which its hue is turned.
        brightness: factor on its colours.
    """

    name: str
    matrix: np.ndarray
    centre: tuple[float, float]
    corner: tuple[float, float]
    size: tuple[float, float]
    hue: float
    brightness: float

    def draw(self, image_size: int) -> tuple[int, int, np.ndarray]:
        """Left, top and the object, uint8[h, w, 4], cut to the image."""
        # One pixel more on each side: the rim, where alpha falls from 1/2 to 0.
        left, top = (max(0, math.floor(x) - 1) for x in self.corner)
        right, bottom = (
            min(image_size, math.ceil(x + length) + 1)
            for x, length in zip(self.corner, self.size, strict=True)
        )
        centre = (self.centre[0] - left, self.centre[1] - top)
        sprite = draw(self.name, self.matrix, centre, (right - left, bottom - top))
        return left, top, recolour(sprite, self.hue, self.brightness)


def recolour(sprite: np.ndarray, hue: float, brightness: float) -> np.ndarray:
    """A sprite of turned hue and changed brightness, its alpha as before.

    The hue turns around the axis of greys, red, green and blue as one vector, which keeps their
    mean; a colour out of range is cut.

    Args:
        sprite: uint8[h, w, 4], colours times alpha and alpha.
        hue: degrees.
        brightness: factor.
    """
    cosine, sine = math.cos(math.radians(hue)), math.sin(math.radians(hue)) / math.sqrt(3)
    same, rest = (1 + 2 * cosine) / 3, (1 - cosine) / 3
    turn = np.zeros((4, 4))
    turn[0, :3] = same, rest - sine, rest + sine
    turn[1, :3] = rest + sine, same, rest - sine
    turn[2, :3] = rest - sine, rest + sine, same
    turn *= brightness
    turn[3, 3] = 1
    turned = cv2.transform(sprite, turn)
    # No colour exceeds its alpha, as it would if it were brighter than white.
    return cv2.min(turned, np.repeat(sprite[..., 3:], 4, 2))


def _archive() -> str:
    return str(_ASSETS / "objects.zip")


@functools.cache
def _files() -> dict[str, bytes]:
    """The encoded pictures by file name; each is checked against the archive's checksum."""
    try:
        with (_ASSETS / "objects.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{_archive()}: expected the pictures of objects, got no file; {_REINSTALL}"
        ) from error
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{_archive()}: expected the pictures of objects, got a damaged file ({error}); "
            f"{_REINSTALL}"
        ) from error


@functools.lru_cache(maxsize=4096)
def _level(name: str, side: int) -> tuple[np.ndarray, float, float]:
    """An object shrunk, by area, to a longer side of `side` pixels, with a transparent rim.

    Returns:
        The pixels, and how many of them are one unit of the object's coordinates across and down
        (not quite `side`: the shorter side is a whole number of pixels too).
    """
    pixels = load(name)
    height, width = pixels.shape[:2]
    size = [max(1, round(length * side / SIDE)) for length in (width, height)]
    shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    shrunk = cv2.copyMakeBorder(shrunk, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return shrunk, size[0] * SIDE / width, size[1] * SIDE / height


@functools.lru_cache(maxsize=1024)
def _outline(name: str) -> np.ndarray:
    """Corners of the convex hull of the silhouette, f[k, 2], in the object's coordinates."""
    pixels = load(name)
    rows, columns = np.nonzero(pixels[..., 3] >= 128)
    corners = np.concatenate(
        [np.stack([columns + x, rows + y], 1) for x in (0, 1) for y in (0, 1)]
    ).astype(np.float32)
    hull = cv2.convexHull(corners)[:, 0]
    return (hull - np.array(pixels.shape[1::-1]) / 2) / SIDE
