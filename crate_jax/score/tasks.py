"""What a task of `score` is: rows of numbers of each image, and the scores that they give."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export.tables import Table
from crate_jax.models import base
from crate_jax.segmentation import discovery, emergence
from crate_jax.segmentation.emergence import Estimate

Row = dict[str, np.ndarray]
"""What a task keeps of an image, by name; of all images of a set in the same shapes."""

Columns = Mapping[str, Sequence[np.ndarray]]
"""The rows of all images that were used, in their order."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A usable image of the dataset.

    Attributes:
        name: in the dataset.
        pixels: uint8[height, width, 3], the network's input.
        picture: uint8[height, width, 3], as it was read.
        objects: for [CLS] attention; None where that is not scored.
    """

    name: str
    pixels: np.ndarray
    picture: np.ndarray
    objects: emergence.Objects | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image itself."""
        return self.picture.shape[0], self.picture.shape[1]


class Task(abc.ABC):
    """A measure of images that `score` can make beside [CLS] attention and MaskCut.

    Args:
        samples: bootstrap draws.
        seed: of the draws.

    Attributes:
        name: one of `names.TASKS`.
        headline: names of the scores by which conditions are compared, to their headings.
        settings: what its scores depend on, JSON-able.
        programs: of a fixed size of input, that it runs.
    """

    name: ClassVar[str]
    headline: ClassVar[Mapping[str, str]] = {}
    settings: dict[str, Any]
    programs: Sequence[inference.Batches] = ()

    def __init__(self, *, samples: int = 10_000, seed: int = 0):
        self.samples, self.seed = samples, seed

    @abc.abstractmethod
    def __call__(self, examples: Sequence[Example], params: Any) -> list[Row]:
        """Measures some images; names of rows begin with the task's."""

    @abc.abstractmethod
    def estimates(
        self, used: Sequence[str], columns: Columns, random: Columns | None
    ) -> dict[str, Estimate]:
        """The scores by name.

        Args:
            used: names of the images.
            columns: what was measured of them.
            random: the same by the network with random weights.
        """

    @abc.abstractmethod
    def tables(self, estimates: Mapping[str, Estimate]) -> list[Table]:
        """The scores as tables."""


class OfWeights(Task):
    """A task that scores one network alone; random weights' have `_random` behind its name."""

    def estimates(
        self, used: Sequence[str], columns: Columns, random: Columns | None
    ) -> dict[str, Estimate]:
        """See `Task`."""
        del used
        found = self.scores(self.name, columns)
        return found if random is None else found | self.scores(f"{self.name}_random", random)

    @abc.abstractmethod
    def scores(self, stem: str, columns: Columns) -> dict[str, Estimate]:
        """The scores of one network, by names that begin with `stem`."""


class OfFeatures(Task):
    """What is found in the last layer's features of images at sizes of their own.

    Args:
        network: from `inference.load`.
        data: with what the task is scored against.
        dataset: its name, for the published controls.
        size: (height, width) of the network's input, where the set has no sizes of its own.
        arrays: the features and maps that the task reads; tasks of one run share them.
        tau: TokenCut's.
        **draws: see `Task`.
    """

    def __init__(
        self,
        network: inference.Network,
        data: Any,
        dataset: str,
        size: tuple[int, int],
        *,
        arrays: "OwnSize",
        tau: float = discovery.PAPER_TAU,
        **draws: int,
    ):
        super().__init__(**draws)
        self.data, self.dataset, self.size, self.tau = data, dataset, size, tau
        self._patch, self._arrays = network.config.patch_size, arrays
        self.settings = {"tau": tau, "features": arrays.kind, "layer": network.config.depth - 1}


class OwnSize:
    """Features of the last layer and [CLS] maps of one, of images at sizes of their own.

    A program is compiled for every size of input that is met. Images of one size that come
    together are computed together. What was computed last is kept: several tasks may ask for it.

    Args:
        network: from `inference.load`.
        maps_layer: index in [0, depth) of the layer whose maps are taken.
        kind: of the features: "subspace" (a ViT's keys) or "tokens".
    """

    def __init__(self, network: inference.Network, maps_layer: int, kind: str = "subspace"):
        self.kind, self.maps_layer = kind, maps_layer
        self._params, self._patch = network.params, network.config.patch_size
        self._run = jax.jit(_own_size(network, maps_layer, kind))
        self._last: tuple[list[np.ndarray], Any, list[_Arrays]] = [], None, []

    def __call__(self, inputs: Sequence[np.ndarray], params: Any) -> list["_Arrays"]:
        """(features f32[n, d], maps f32[heads, n], grid) of each uint8[height, width, 3].

        An input that patches do not divide is padded at the bottom and the right by zeros, which
        stand behind the normalisation.
        """
        before, of, found = self._last
        same = of is params and len(before) == len(inputs)
        if not same or any(a is not b for a, b in zip(before, inputs, strict=True)):
            found = self._compute(inputs, params)
            self._last = list(inputs), params, found
        return found

    def _compute(self, inputs: Sequence[np.ndarray], params: Any) -> list["_Arrays"]:
        p = self._patch
        grids = [tuple(-(-side // p) for side in one.shape[:2]) for one in inputs]
        together = len(set(grids)) == 1
        groups = [range(len(inputs))] if together else [[place] for place in range(len(inputs))]
        found: list[_Arrays] = []
        for group in groups:
            rows, columns = grids[group[0]]
            padded = np.zeros((len(group), rows * p, columns * p, 3), np.uint8)
            for row, place in enumerate(group):
                height, width = inputs[place].shape[:2]
                padded[row, :height, :width] = inputs[place]
            sizes = np.array([inputs[place].shape[:2] for place in group], np.int32)
            with jax.default_matmul_precision("highest"):
                out = self._run(self._params if params is None else params, padded, sizes)
            features, maps = jax.device_get(out)
            found += [
                (one, map_, (rows, columns)) for one, map_ in zip(features, maps, strict=True)
            ]
        return found


_Arrays = tuple[np.ndarray, np.ndarray, tuple[int, int]]


def _own_size(network, maps_layer, kind):
    read = inference.patch_arrays(network, kind)
    layers = sorted({maps_layer, network.config.depth - 1})

    def run(params, pixels, sizes):
        model = base.merge(network.definition, params)
        rows = jnp.arange(pixels.shape[1])[None, :, None] < sizes[:, 0, None, None]
        columns = jnp.arange(pixels.shape[2])[None, None] < sizes[:, 1, None, None]
        inside = (rows & columns)[..., None]
        _, out = model(jnp.where(inside, model.preprocess(pixels), 0), capture=tuple(layers))
        features, maps = read(out)
        return features[:, -1], maps[:, layers.index(maps_layer)]

    return run


def check_finite(example: Example, *arrays: np.ndarray) -> None:
    """Raises ValueError where a network's output for an image is no number."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            f"{example.name}: features: expected finite numbers, got NaN or infinity; check the "
            "weights"
        )


def nearest_multiple(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Each side rounded to the nearest multiple of the patch, at least two patches."""
    height, width = (max(int(side / patch_size + 0.5), 2) * patch_size for side in size)
    return height, width


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at another size, by LANCZOS."""
    return images.resize(picture, size)
