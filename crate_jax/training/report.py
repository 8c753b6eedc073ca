"""The report of a run: what the network attends to on held-out images, and its metrics."""

import pathlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from crate_jax._version import __version__
from crate_jax.config import plain
from crate_jax.data import loader
from crate_jax.export import explorer, report
from crate_jax.models import base
from crate_jax.segmentation import attention
from crate_jax.training import autoencoding
from crate_jax.training.inputs import Data

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write(
    directory: pathlib.Path,
    config: ml_collections.ConfigDict,
    data: Data,
    definition: nnx.GraphDef,
    params: Any,
    lines: list[Mapping[str, Any]],
) -> pathlib.Path:
    """Writes report/index.html of a run.

    Args:
        directory: the run's workdir.
        config: resolved.
        data: the run's data; its held-out images are shown.
        definition: the static half of `base.split`.
        params: the parameters.
        lines: of metrics.jsonl.

    Returns:
        The path of the page.
    """
    return report.write_report(
        directory / "report" / "index.html",
        title=f"{config.model.family.upper()} on {config.data.name}",
        lede=_lede(config, data),
        config=plain(config),
        history=lines,
        examples=examples(config, data, definition, params),
        environment=environment(),
        reconstructions=reconstructions(config, data, definition, params),
        keep=config.evaluation.keep,
    )


def reconstructions(
    config: ml_collections.ConfigDict, data: Data, definition: nnx.GraphDef, params: Any
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of a masked autoencoder: (image, what it saw of it, what it made of it), uint8[h, w, 3]."""
    count = min(config.evaluation.report_images, len(data.val))
    if config.model.family != "crate_mae" or not count:
        return []
    batch, valid = _spread(data, count)
    pictures = autoencoding.pictures(definition, params, batch["image"], batch["index"])
    return [tuple(x[row] for x in (batch["image"], *pictures)) for row in np.flatnonzero(valid)]


def examples(
    config: ml_collections.ConfigDict, data: Data, definition: nnx.GraphDef, params: Any
) -> list[dict[str, Any]]:
    """Held-out images, spread over the set, with every layer's and head's [CLS] map.

    The first of them also have what the page's explorer needs.
    """
    count = min(config.evaluation.report_images, len(data.val))
    if not count:
        return []
    batch, valid = _spread(data, count)

    forward, registers = base.forward(definition, capture=True), config.model.registers

    @jax.jit
    def compute(params, images):
        logits, out = forward(params, images)
        maps = attention.layer_maps(out["query"], out["key"], registers)
        return logits, maps, {name: out[name] for name in explorer.CAPTURED if name in out}

    logits, maps, captured = jax.device_get(compute(params, batch["image"]))
    rows = batch["image"].shape[1] // config.model.patch_size
    maps = maps.reshape(*maps.shape[:3], rows, -1)
    read = np.flatnonzero(valid)
    captured = {name: array[:, read] for name, array in captured.items()}
    packed = explorer.pack_first(captured, maps.shape[-2:], registers)
    names = data.val.class_names
    shown = []
    for place, row in enumerate(read):
        entry = {"image": batch["image"][row], "maps": maps[row]}
        if place < len(packed):
            entry["packed"] = packed[place]
        if config.model.classes:
            predicted = int(logits[row].argmax())
            entry["label"] = names[batch["label"][row]]
            entry["predicted"] = names[predicted] if predicted < len(names) else f"#{predicted}"
        if "mask" in batch:
            entry["mask"] = batch["mask"][row]
        shown.append(entry)
    return shown


def _spread(data: Data, count: int) -> tuple[loader.Example, np.ndarray]:
    """A batch of held-out images, spread over the set; and which of them could be read."""
    indices = np.linspace(0, len(data.val) - 1, count).astype(int)
    source = _Subset(data.val, indices)
    batch = next(loader.eval_batches(source, batch_size=count, transform=data.transform("val")))
    return batch, batch["valid"]


def environment() -> dict[str, str]:
    """Versions and devices."""
    device = jax.devices()[0]
    return {
        "crate_jax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }


def _lede(config: ml_collections.ConfigDict, data: Data) -> str:
    size = " x ".join(str(side) for side in config.model.image_size)
    taught = (
        "trained without labels, on reconstructing hidden patches"
        if config.model.family == "crate_mae"
        else "trained on class labels alone"
    )
    return (
        f"{config.model.depth} layers of {config.model.heads} heads, {size} px in patches of "
        f"{config.model.patch_size}, {taught}. What follows was measured on "
        f"{len(data.val):,} images that it never saw."
    )


class _Subset:
    """Some examples of a source, as a source."""

    def __init__(self, source: loader.Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.has_masks = source.has_masks
        self.on_corrupt = getattr(source, "on_corrupt", "error")
        if hasattr(source, "encoded"):
            self.encoded = lambda i: source.encoded(int(indices[i]))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> loader.Example:
        return self._source[int(self._indices[i])]
