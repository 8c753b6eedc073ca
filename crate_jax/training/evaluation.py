"""Held-out figures: top-1, top-5, loss; [CLS] attention against masks; coding rate and sparsity.

A masked autoencoder has the loss alone, on patches hidden by noise that depends on the image's
place in the set, the same at every evaluation; its layers are measured with nothing hidden.

Names: val/top1, val/top5, val/loss; val/cls_iou/RULE/HEAD/layerNN with RULE mass or area, HEAD best
or mean and layers from 01; val/cls_iou_random/... for the same network with random weights;
val/cls_iou_other/... for the same maps against another image's mask, which says how much is a
prior on place; val/cls_iou_all_ones, val/cls_iou_centre_box; val/coding_rate/layerNN,
val/sparsity/layerNN. An interval (95 %, bootstrap over images) adds /low and /high to the name.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crate_jax.models import base
from crate_jax.segmentation import attention, layerwise, scoring
from crate_jax.training import autoencoding, losses, sharding

Arrays = dict[str, np.ndarray]
RULES = ("mass", "area")


class Interrupted(Exception):
    """An evaluation was told to stop; nothing of it is kept."""


def classifier_figures(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Per image: loss, top1, top5, and the class predicted."""
    return {
        "loss": losses.cross_entropy(logits, labels),
        "top1": losses.top_k_correct(logits, labels, 1),
        "top5": losses.top_k_correct(logits, labels, 5),
        "predicted": jnp.argmax(logits, axis=-1),
    }


def make_measure(
    definition: nnx.GraphDef, mesh: jax.sharding.Mesh, *, capture: bool, masks: bool, keep: float
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """A jitted (parameters, batch) -> per-image arrays, the batch axis first.

    Args:
        definition: the static half of `base.split` of a classifier, or a masked autoencoder.
        mesh: the devices; the results are gathered on every one, so that each host reads all.
        capture: also measure every layer: coding_rate, sparsity f[b, layers].
        masks: the batch has `mask` bool[b, h, w]; with `capture` also mass, area
            f[b, layers, heads], the IoU of each head's thresholded map, other_mass, other_area,
            the same against the mask of the image half a batch away, and the baselines.
        keep: the part of mass or area that the rules keep.
    """

    def measure(params, batch):
        model = base.merge(definition, params)
        images = model.preprocess(batch["image"])
        logits, out = model(images, capture=capture)
        if model.config.family == "crate_mae":
            figures = autoencoding.figures(model, images, batch["index"])
        else:
            figures = classifier_figures(logits, batch["label"])
        if not capture:
            return figures
        numbers = range(out["query"].shape[0])
        figures["coding_rate"] = jnp.stack(
            [layerwise.coding_rate(out["query"][layer]) for layer in numbers], axis=1
        )
        figures["sparsity"] = jnp.stack(
            [layerwise.sparsity(out["tokens"][layer]) for layer in numbers], axis=1
        )
        if masks:
            grid = tuple(side // model.config.patch_size for side in images.shape[1:3])
            ious, others = [], []
            other = jnp.roll(batch["mask"], _partner(len(images)), axis=0)
            for layer in numbers:
                maps = attention.cls_maps(out["query"][layer], out["key"][layer])
                ious.append(scoring.cls_iou(maps, batch["mask"], grid, fraction=keep))
                others.append(scoring.cls_iou(maps, other, grid, fraction=keep))
            for rule in RULES:
                figures[rule] = jnp.stack([iou[rule] for iou in ious], axis=1)
                figures[f"other_{rule}"] = jnp.stack([iou[rule] for iou in others], axis=1)
            figures |= scoring.baselines(batch["mask"])
        return figures

    return jax.jit(measure, out_shardings=sharding.replicated(mesh))


class Evaluator:
    """Runs a network over held-out batches.

    Args:
        definition: the static half of `base.split` of a classifier.
        batches: returns a fresh pass over the held-out set: this process's part of each batch,
            with `valid` bool[b] False at padding.
        mesh: the devices.
        masks: whether batches have masks to score attention against.
        capture_images: measure the layers on at least so many images (the first ones), since
            capturing costs memory and time; 0 for none. Accuracy is always measured on all.
        keep: the part of mass or area that the rules keep.

    Attributes:
        skipped: indices of the corrupt images that the last pass left out, of all processes (needs
            `config.data.on_corrupt="skip"`).
    """

    def __init__(
        self,
        definition: nnx.GraphDef,
        batches: Callable[[], Iterable[Arrays]],
        mesh: jax.sharding.Mesh,
        *,
        masks: bool,
        capture_images: int,
        keep: float,
    ):
        masks = masks and capture_images > 0  # without layers there are no maps to score
        self.batches, self.mesh, self.masks = batches, mesh, masks
        self.capture_images, self.skipped = capture_images, []
        self._plain = make_measure(definition, mesh, capture=False, masks=False, keep=keep)
        self._full = make_measure(definition, mesh, capture=True, masks=masks, keep=keep)
        self._random_images: Arrays | None = None

    def compile(self, params: Any, batch: Arrays) -> None:
        """Compiles what a run will need, for a batch of these shapes; nothing is computed."""
        arrays = self._put(batch, self.masks)
        for part, function in ((False, self._plain), (True, self._full)):
            needed = arrays if part else {k: v for k, v in arrays.items() if k != "mask"}
            function.lower(params, {k: v for k, v in needed.items() if k != "valid"}).compile()

    def _put(self, batch: Arrays, masks: bool) -> dict[str, jax.Array]:
        keys = ["image", "label", "index", "valid"] + ["mask"] * masks
        arrays = {key: batch[key] for key in keys}
        arrays["index"] = arrays["index"].astype(np.int32)
        return sharding.put_batch(arrays, sharding.batch_sharding(self.mesh))

    def measure(
        self,
        params: Any,
        *,
        capture_only: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Arrays:
        """Per-image arrays over the held-out set, padding removed, in the set's order.

        Layer-wise arrays are shorter where `capture_images` is smaller than the set.

        Args:
            params: the parameters.
            capture_only: end once the layers are measured.
            stop: asked before every batch.

        Raises:
            Interrupted: where `stop` said so.
        """
        columns: dict[str, list[np.ndarray]] = {}
        measured, skipped = 0, []
        for batch in self.batches():
            if stop():
                raise Interrupted
            full = measured < self.capture_images
            if capture_only and not full:
                break
            arrays = self._put(batch, full and self.masks)
            valid, index = arrays.pop("valid"), arrays["index"]
            figures = jax.device_get((self._full if full else self._plain)(params, arrays))
            valid, index = jax.device_get(_replicate((valid, index), self.mesh))
            skipped += index[~valid & (index >= 0)].tolist()
            paired = np.roll(valid, _partner(len(valid))) & (_partner(len(valid)) > 0)
            for name in figures:
                if name.startswith("other_"):
                    figures[name] = np.where(paired[:, None, None], figures[name], np.nan)
            for name, value in figures.items():
                columns.setdefault(name, []).append(value[valid])
            measured += int(valid.sum())
        self.skipped = skipped
        return {name: np.concatenate(parts) for name, parts in columns.items()}

    def __call__(
        self,
        params: Any,
        random_params: Any = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """All figures by name.

        Args:
            params: the trained parameters.
            random_params: a function returning the same network's random parameters, called once;
                None leaves that baseline out.
            stop: asked before every batch.

        Raises:
            Interrupted: where `stop` said so.
        """
        images = self.measure(params, stop=stop)
        metrics = means(images)
        if self.skipped:
            metrics["val/skipped_images"] = len(self.skipped)
        if not self.masks:
            return metrics
        rows = iou_rows(images, "val/cls_iou")
        if random_params is not None:
            if self._random_images is None:
                self._random_images = self.measure(random_params(), capture_only=True, stop=stop)
            random = self._random_images
            metrics |= _row_means(iou_rows(random, "val/cls_iou_random"))
            rows |= gain_rows(images, random)
        return metrics | _row_means(rows) | _row_intervals(rows)


def means(images: Arrays) -> dict[str, float]:
    """Means over images of what `Evaluator.measure` returns, by metric name."""
    scores = [name for name in ("loss", "top1", "top5") if name in images]
    metrics = {f"val/{name}": _mean(images[name]) for name in scores}
    metrics["val/images"] = len(images["loss"])
    for kind in ("coding_rate", "sparsity"):
        if kind in images:
            metrics |= _row_means(_by_layer(f"val/{kind}", images[kind].T))
    if "mass" in images:
        others = {rule: images[f"other_{rule}"] for rule in RULES}
        paired = np.isfinite(others["mass"]).all(axis=(1, 2))
        if paired.any():
            others = {rule: values[paired] for rule, values in others.items()}
            metrics |= _row_means(iou_rows(others, "val/cls_iou_other"))
        for name in ("all_ones", "centre_box"):
            metrics[f"val/cls_iou_{name}"] = _mean(images[name])
        # A mask of everything has the object's share of the image as its IoU.
        metrics["val/object_fraction"] = metrics["val/cls_iou_all_ones"]
    return metrics


def iou_rows(images: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """PREFIX/RULE/HEAD/layerNN: f64[images], IoU of the best head in each and of all heads."""
    rows = {}
    for rule in RULES:
        scores = scoring.head_scores(np.moveaxis(images[rule], 0, 1))
        for head in ("best", "mean"):
            rows |= _by_layer(f"{prefix}/{rule}/{head}", scores[head])
    return rows


def gain_rows(images: Arrays, random_images: Arrays) -> dict[str, np.ndarray]:
    """val/cls_iou_gain/RULE/best/layerNN: trained minus random weights, paired by image."""
    rows = {}
    for rule in RULES:
        trained, random = (x[rule].max(axis=-1).astype(np.float64) for x in (images, random_images))
        rows |= _by_layer(f"val/cls_iou_gain/{rule}/best", (trained - random).T)
    return rows


def _partner(batch: int) -> int:
    """How far away in a batch the image is whose mask the control takes; 0: there is none."""
    return batch // 2


def layer_name(index: int) -> str:
    """Index 0 -> "layer01"."""
    return f"layer{index + 1:02d}"


def _by_layer(prefix: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """f[layers, images] as rows PREFIX/layerNN."""
    return {f"{prefix}/{layer_name(index)}": row for index, row in enumerate(values)}


def _row_means(rows: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: _mean(row) for name, row in rows.items()}


def _row_intervals(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """NAME/low and NAME/high of every row; one set of draws serves all."""
    low, high = scoring.bootstrap_interval(np.stack(list(rows.values())))
    ends = {"low": low, "high": high}
    return {
        f"{name}/{end}": float(values[index])
        for index, name in enumerate(rows)
        for end, values in ends.items()
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))


def _replicate(arrays: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.device_put(arrays, sharding.replicated(mesh))
