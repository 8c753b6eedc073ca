"""What a run's metrics say, arranged for the report: the headline, the comparison, curves.

Reads the lines of `metrics.jsonl`: dictionaries with `step` and metrics by name. Names are those
of docs/training.md: train/..., val/... and, below val/, those of `segmentation.emergence`; layers
count from 01, and an interval is `<name>/low` and `<name>/high`.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from crate_jax import files
from crate_jax.export.charts import Line, line_chart
from crate_jax.export.tables import rule_names


class History:
    """The metrics of a run: the last value of each, and each over steps."""

    def __init__(self, lines: Iterable[Mapping], summary: Mapping | None = None):
        """Takes the lines in order; `summary` stands over their last values."""
        self.lines = [line for line in lines if "step" in line]
        self.last: dict[str, float] = {}
        for line in [*self.lines, summary or {}]:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    self.last[name] = float(value)

    def over_steps(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one metric."""
        points = [(line["step"], line[name]) for line in self.lines if name in line]
        return [step for step, _ in points], [_number(value) for _, value in points]

    def by_layer(self, prefix: str, at: Mapping | None = None) -> tuple[list[int], list[float]]:
        """(layers, values) of `<prefix>/layerNN`, last values or those of one line."""
        values = self.last if at is None else at
        pattern = re.compile(re.escape(prefix) + r"/layer(\d+)$")
        found = sorted((int(m[1]), n) for n in values if (m := pattern.match(n)))
        return [layer for layer, _ in found], [_number(values[name]) for _, name in found]

    def interval(self, name: str) -> tuple[float | None, float | None]:
        """(low, high) of a metric, or (None, None)."""
        ends = self.last.get(f"{name}/low"), self.last.get(f"{name}/high")
        return ends if None not in ends else (None, None)

    def best_layer(self, rule: str = "mass", head: str = "best") -> int | None:
        """The layer with the highest last IoU, or None where none was measured."""
        layers, values = self.by_layer(f"val/cls_iou/{rule}/{head}")
        return max(zip(values, layers, strict=True))[1] if layers else None


def read(workdir: str | os.PathLike) -> History:
    """The history of a run so far; of a run that is being written, without its torn last line.

    Raises:
        FileNotFoundError: where the directory holds no metrics.jsonl.
        ValueError: another line of it is something else.
    """
    return History(files.read_metrics(Path(workdir, "metrics.jsonl")))


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def iou_name(rule: str, head: str, layer: int, kind: str = "cls_iou") -> str:
    """The metric's name, e.g. val/cls_iou/mass/best/layer05."""
    return f"val/{kind}/{rule}/{head}/layer{layer:02d}"


# -- the headline ---------------------------------------------------------------------------------

# Label, kind of metric, the control that it is a difference to, note.
_EMERGENCE = (
    ("Attention IoU", "cls_iou", "", "best head, mass rule, layer {layer}"),
    (
        "Over another's object",
        "cls_iou_own_minus_other",
        "cls_iou_other",
        "same maps, next image's object: {against:.3f}",
    ),
    ("Over random weights", "cls_iou_gain", "cls_iou_random", "untrained: {against:.3f}"),
)


def headline(history: History) -> list[dict]:
    """The cards at the top: label, value, notes."""
    last, cards = history.last, []

    def card(label, value, *notes):
        cards.append({"label": label, "value": value, "notes": [note for note in notes if note]})

    layer = history.best_layer()
    for label, kind, control, note in _EMERGENCE:
        if layer is not None and (name := iou_name("mass", "best", layer, kind)) in last:
            against = last.get(iou_name("mass", "best", layer, control), math.nan)
            sign = "+" if control else ""
            note = note.format(layer=layer, against=against)
            card(label, f"{last[name]:{sign}.3f}", note, _interval_text(history, name))
    if "val/top1" in last:
        top5 = f"top-5 {100 * last['val/top5']:.1f} %" if "val/top5" in last else ""
        percent = _interval_text(history, "val/top1", percent=True)
        card("Top-1 accuracy", f"{100 * last['val/top1']:.1f} %", top5, percent)
    if "val/loss" in last:
        train = f"training {last['train/loss']:.3f}" if "train/loss" in last else ""
        card("Validation loss", f"{last['val/loss']:.3f}", train)
    elif "train/loss" in last:
        card("Training loss", f"{last['train/loss']:.3f}")
    return cards


def _interval_text(history: History, name: str, percent: bool = False) -> str:
    low, high = history.interval(name)
    if low is None:
        return ""
    text = f"{100 * low:.1f}–{100 * high:.1f} %" if percent else f"{low:.3f}–{high:.3f}"
    return f"95 % interval {text}"


def comparison(history: History, keep: float) -> dict | None:
    """The bars: this network beside what needs no learning; None without a measured IoU."""
    layer = history.best_layer()
    if layer is None:
        return None
    names = [
        (f"this network, layer {layer}", iou_name("mass", "best", layer)),
        ("same maps, another image's object", iou_name("mass", "best", layer, "cls_iou_other")),
        ("random weights, same layer", iou_name("mass", "best", layer, "cls_iou_random")),
        ("a centred box", "val/cls_iou_centre_box"),
        ("the whole image", "val/cls_iou_all_ones"),
    ]
    bars = []
    for label, name in names:
        if name in history.last:
            low, high = history.interval(name)
            value = history.last[name]
            bars.append({"name": label, "value": value, "low": low, "high": high})
    note = (
        f"Best head of each image, {rule_names(keep)['mass']}; the layer is the one that scores "
        "highest. Against another image's object only the prior on place scores. Whiskers are 95 % "
        "bootstrap intervals over images."
    )
    return {"bars": bars, "note": note}


# -- curves ---------------------------------------------------------------------------------------


def chart_sections(history: History) -> list[dict]:
    """Sections with their charts, empty ones left out."""
    sections = [
        ("How it learned", "", [_loss(history), _accuracy(history), _emergence(history)]),
        (
            "Inside the layers",
            "Measured on held-out images. Compressing tokens (a low coding rate) and making them "
            "sparse are the two terms of sparse rate reduction, which CRATE's layers optimise.",
            [_iou_by_layer(history), _coding_rate(history), _non_zeros(history)],
        ),
    ]
    result = []
    for title, note, charts in sections:
        if drawn := [chart for chart in charts if chart["svg"]]:
            result.append({"title": title, "note": note, "charts": drawn})
    return result


def _chart(title: str, note: str, lines: list[Line], x_label: str = "step") -> dict:
    svg = line_chart(lines, title=title, x_label=x_label, whole_x=x_label == "layer")
    return {"title": title, "note": note, "svg": svg}


def _curve(history: History, name: str, label: str, **style) -> Line:
    steps, values = history.over_steps(name)
    low_steps, low = history.over_steps(f"{name}/low")
    _, high = history.over_steps(f"{name}/high")
    if low_steps == steps and len(high) == len(steps):
        style |= {"low": low, "high": high}
    return Line(label, steps, values, **style)


def _loss(history: History) -> dict:
    lines = [
        _curve(history, "train/loss", "train", tone="muted"),
        _curve(history, "val/loss", "held-out", markers=True),
    ]
    return _chart("Loss", "On the batches it trained on, and on held-out images.", lines)


def _accuracy(history: History) -> dict:
    lines = [
        _curve(history, "train/top1", "train", tone="muted"),
        _curve(history, "val/top1", "top-1", markers=True),
        _curve(history, "val/top5", "top-5", tone=0.3, markers=True),
    ]
    return _chart("Accuracy", "Share of images whose class is named rightly.", lines)


def _emergence(history: History) -> dict:
    layers, _ = history.by_layer("val/cls_iou/mass/best")
    lines = [
        _curve(
            history,
            iou_name("mass", "best", layer),
            f"{layer}",
            tone=place / max(1, len(layers) - 1),
            markers=True,
        )
        for place, layer in enumerate(layers)
    ]
    note = "IoU of the best head (mass rule), a line for each layer."
    return _chart("Segmentation emerging", note, lines)


def _by_layer(history: History, name: str, label: str, at=None, share=False, **style) -> Line:
    layers, values = history.by_layer(name, at)
    if share:
        values = [1 - value for value in values]
    return Line(label, layers, values, markers=True, **style)


def _iou_by_layer(history: History) -> dict:
    lines = [
        _by_layer(history, "val/cls_iou/mass/best", "own object"),
        _by_layer(history, "val/cls_iou_other/mass/best", "another's", tone=0.3),
        _by_layer(history, "val/cls_iou_random/mass/best", "random", tone="muted", dashed=True),
    ]
    layers = lines[0].x
    for label, name in (("whole image", "all_ones"), ("centred box", "centre_box")):
        if layers and f"val/cls_iou_{name}" in history.last:
            level = history.last[f"val/cls_iou_{name}"]
            lines.append(Line(label, [layers[0], layers[-1]], [level, level], 0.0, dashed=True))
    note = "Best head, mass rule, beside what needs no learning."
    return _chart("Attention IoU by layer", note, lines, "layer")


def _first_and_last(history: History, name: str, share: bool = False) -> list[Line]:
    prefix = f"{name}/"
    measured = [line for line in history.lines if any(key.startswith(prefix) for key in line)]
    lines = [_by_layer(history, name, "end", share=share)]
    if len(measured) > 1:
        start = _by_layer(
            history, name, "start", at=measured[0], share=share, tone="muted", dashed=True
        )
        lines.append(start)
    return lines


def _coding_rate(history: History) -> dict:
    note = "Nats for an image's tokens in the layer's subspaces; lower is more compressed."
    lines = _first_and_last(history, "val/coding_rate")
    return _chart("Coding rate", note, lines, "layer")


def _non_zeros(history: History) -> dict:
    note = "Share of entries that are not exactly zero; lower is sparser."
    lines = _first_and_last(history, "val/sparsity", share=True)
    return _chart("Non-zero entries", note, lines, "layer")
