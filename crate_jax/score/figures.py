"""From what was measured of every image to figures with 95 % intervals, by name.

cls_iou/RULE/HEAD/layerNN            RULE mass|area, HEAD best|mean|single, layers from 01
cls_iou_random/..., cls_iou_gain/... the same network untrained, and the paired difference
cls_iou_other/...                    the maps against the next image's objects: a prior on place
cls_iou_all_ones, cls_iou_centre_box
coding_rate/layerNN, sparsity/layerNN
maskcut/layerNN/tauT/KIND/AP         KIND box|mask; also AP50, AP75, AR100
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from crate_jax.score.datasets import Dataset
from crate_jax.score.findings import RULES, Measured
from crate_jax.score.measuring import Protocol
from crate_jax.segmentation import scoring

HEADS = ("best", "mean", "single")
APS = ("AP50", "AP75", "AP", "AR100")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure and the ends of its interval (None where none was taken or none exists)."""

    value: float | None
    low: float | None = None
    high: float | None = None


Figures = dict[str, Figure]


def attention(
    measured: Measured,
    protocol: Protocol,
    untrained: Measured | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Figures:
    """Figures of [CLS] attention, all with the same draws of images.

    Args:
        measured: of the network.
        protocol: that it was measured by.
        untrained: of the same network with random weights, on the same images; None leaves the
            comparison out.
        samples: draws of the bootstrap.
        seed: of the draws.
    """
    layers = [f"layer{layer + 1:02d}" for layer in protocol.attention_layers]
    rows: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}
    if measured.blind:
        for rule in RULES:
            found = measured.iou[rule].result()
            random = untrained.iou[rule].result() if untrained else {}
            for head in HEADS:
                for layer, values in zip(layers, found[head], strict=True):
                    rows[f"cls_iou/{rule}/{head}/{layer}"] = values
                for layer, values in zip(layers, random.get(head, ()), strict=bool(random)):
                    name = f"{rule}/{head}/{layer}"
                    rows[f"cls_iou_random/{name}"] = values
                    rows[f"cls_iou_gain/{name}"] = rows[f"cls_iou/{name}"] - values
        others = _others(measured, layers)
        rows["cls_iou_all_ones"], rows["cls_iou_centre_box"] = np.array(measured.blind).T
    figures = _means(rows, samples, seed) | _means(others, samples, seed)
    inside = {}
    for kind in ("coding_rate", "sparsity"):
        for layer, values in zip(layers, np.transpose(getattr(measured, kind)), strict=True):
            inside[f"{kind}/{layer}"] = values
    return figures | _means(inside, samples, seed)


def _others(measured: Measured, layers: list[str]) -> dict[str, np.ndarray]:
    rows = {}
    for rule in RULES:
        try:
            found = measured.other[rule].result()
        except ValueError:  # a single image, or none with an object after the first
            return {}
        for head in HEADS:
            for layer, values in zip(layers, found[head], strict=True):
                rows[f"cls_iou_other/{rule}/{head}/{layer}"] = values
    return rows


def masks(measured: Measured, data: Dataset, *, samples: int = 1_000, seed: int = 0) -> Figures:
    """COCO's class-agnostic AP of MaskCut's masks, for every layer and tau.

    Images that failed are left out of the ground truth too.
    """
    truth = data.ground_truth(measured.used)
    figures = {}
    for (layer, tau), found in measured.masks.items():
        scores = scoring.coco_ap(truth, found, samples=samples, seed=seed)
        for kind in ("box", "mask"):
            for ap in APS:
                value, low, high = (
                    _number(scores.get(f"{kind}/{ap}{end}", np.nan))
                    for end in ("", "/low", "/high")
                )
                figures[f"{mask_prefix(layer, tau)}/{kind}/{ap}"] = Figure(value, low, high)
    return figures


def mask_prefix(layer: int, tau: float) -> str:
    """maskcut/layerNN/tauT of a layer's index from 0."""
    return f"maskcut/layer{layer + 1:02d}/tau{tau:g}"


def plain(figures: Figures) -> dict[str, dict[str, float | None]]:
    """As JSON has them."""
    return {name: dataclasses.asdict(figure) for name, figure in figures.items()}


def metrics(figures: Mapping[str, Figure]) -> dict[str, float]:
    """As a line of metrics.jsonl has them: name, name/low, name/high."""
    flat = {}
    for name, figure in figures.items():
        ends = {"": figure.value, "/low": figure.low, "/high": figure.high}
        flat |= {name + end: value for end, value in ends.items() if value is not None}
    return flat


def _means(rows: Mapping[str, np.ndarray], samples: int, seed: int) -> Figures:
    if not rows:
        return {}
    values = np.stack(list(rows.values())).astype(np.float64)
    low, high = scoring.bootstrap_interval(values, samples=samples, seed=seed)
    ends = zip(values.mean(1), low, high, strict=True)
    return {name: Figure(*map(_number, three)) for name, three in zip(rows, ends, strict=True)}


def _number(value: float) -> float | None:
    """A JSON-able number: there is no NaN in JSON."""
    return float(value) if np.isfinite(value) else None
