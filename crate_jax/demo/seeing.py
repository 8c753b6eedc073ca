"""What a network makes of images, and how well it fits what is known of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from crate_jax import command_line, data, inference
from crate_jax.data.loader import Source
from crate_jax.export import explorer, tables
from crate_jax.models import base
from crate_jax.progress import Progress
from crate_jax.segmentation import attention, emergence, layerwise

ALIKE = 8  # scenes of one object, for its parts
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images, and what the network makes of each.

    Attributes:
        images: uint8[b, height, width, 3].
        predicted: int[b], the class.
        maps: f32[b, layers, heads, n], [CLS] attention.
        captured: f32[layers, b, 1+registers+n, heads, d_head], each of `explorer.CAPTURED`.
        grid: (rows, columns) of patches.
        registers: tokens between [CLS] and the patches.
    """

    images: np.ndarray
    predicted: np.ndarray
    maps: np.ndarray
    captured: Mapping[str, np.ndarray]
    grid: tuple[int, int]
    registers: int

    def features(self) -> np.ndarray:
        """U^T LN(z) of the last layer's patches, all heads side by side: f32[b, n, channels]."""
        keys = self.captured.get("key_unrotated", self.captured["key"])[-1]
        keys = keys[:, 1 + self.registers :]
        return keys.reshape(*keys.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Score:
    """How well held-out scenes are named, and their objects attended to, with all controls."""

    images: int
    keep: float
    estimates: Mapping[str, emergence.Estimate]

    @property
    def best_layer(self) -> int:
        """The index of the layer whose best head fits objects best, by the mass rule."""
        stem = "cls_iou/mass/best/layer"
        layers = [estimate.value for name, estimate in self.estimates.items() if stem in name]
        return int(np.argmax(layers))

    def metrics(self) -> dict[str, float]:
        """As a line of metrics.jsonl has them."""
        flat = emergence.flatten(self.estimates)
        return {f"val/{name}": value for name, value in flat.items()} | {"val/images": self.images}

    def tables(self) -> list[tables.Table]:
        """Top-1, and the IoU of [CLS] attention by the mass rule beside its controls."""
        named = [
            [tables.Cell(label), tables.cell(self.estimates[name], percent=True)]
            for label, name in (
                ("top-1, per cent", "top1"),
                ("object, per cent", "object_fraction"),
            )
        ]
        title = f"{self.images:,} held-out scenes"
        fit = tables.layer_table(self.estimates, "cls_iou/mass", self.keep)
        return [tables.Table(title, "", ["", "mean"], named), *([fit] if fit else [])]


def held_out(config: Mapping, scored: int) -> Source:
    """A run's held-out scenes, at least so many, and `ALIKE` of each object.

    Raises:
        ValueError: a run on something else.
    """
    options = config["data"]
    if options["name"] != "scenes":
        raise ValueError(
            f"checkpoint: expected a network that was trained on scenes, got one of "
            f"{options['name']}; show it by `python -m crate_jax.segment`"
        )
    length = max(scored, ALIKE * max(config["model"]["classes"], 2))
    return data.source({**options, "scenes": options["scenes"] | {"val_length": length}}, "val")


def see(network: inference.Network, images: Sequence[np.ndarray]) -> Seen:
    """Everything of a few images of one size, uint8[height, width, 3] each, at once."""
    forward = base.forward(network.definition, capture=True)
    registers = network.config.registers

    @jax.jit
    def compute(params, images):
        logits, out = forward(params, images)
        maps = attention.layer_maps(out["query"], out["key"], registers)
        captured = {name: out[name] for name in explorer.CAPTURED if name in out}
        return logits.argmax(-1), maps, captured

    stacked = np.stack(images)
    grid = inference.grid_of(network.config, (stacked.shape[1], stacked.shape[2]))
    predicted, maps, captured = jax.device_get(compute(network.params, stacked))
    return Seen(stacked, predicted, maps, captured, grid, registers)


def score(network: inference.Network, scenes: Source, count: int, *, keep: float) -> Score:
    """The first so many held-out scenes, by the network and by it with random weights."""
    size = network.config.image_size
    compute = inference.Batches(network, _measures(network), min(_BATCH, count), size)
    progress = Progress("score", 2 * count, command_line.say)
    random = inference.random_weights(network)
    (right, trained), (_, untrained) = (
        _measure(compute, params, scenes, count, keep, progress)
        for params in (network.params, random.params)
    )
    top1 = emergence.with_intervals({"top1": np.array(right, float)})
    return Score(count, keep, top1 | emergence.estimates(trained, untrained))


def _measures(network: inference.Network) -> Callable:
    """(params, images) -> the class and what `emergence.Measured` takes, of each image."""
    forward = base.forward(network.definition, capture=True)
    registers = network.config.registers

    def run(params, images):
        logits, out = forward(params, images)
        maps = attention.layer_maps(out["query"], out["key"], registers)
        measures = layerwise.of_layers(out["query"], out["tokens"], registers)
        return {"class": logits.argmax(-1), "maps": maps} | measures

    return run


def _measure(
    compute: inference.Batches,
    params: Any,
    scenes: Source,
    count: int,
    keep: float,
    progress: Progress,
) -> tuple[list[bool], emergence.Measured]:
    right, measured = [], emergence.Measured(keep)
    batch, *size, _ = compute.shape
    grid = inference.grid_of(compute.network.config, (size[0], size[1]))
    for start in range(0, count, batch):
        examples = [scenes[index] for index in range(start, min(start + batch, count))]
        images = np.zeros(compute.shape, np.uint8)
        images[: len(examples)] = [example["image"] for example in examples]
        found = {k: np.asarray(v)[: len(examples)] for k, v in compute(images, params).items()}
        labels = np.array([example["label"] for example in examples])
        right += (found.pop("class") == labels).tolist()
        objects = [emergence.objects_of_mask(example["mask"], grid) for example in examples]
        measured.add_batch(objects=objects, **found)
        progress.add(len(examples))
    return right, measured
