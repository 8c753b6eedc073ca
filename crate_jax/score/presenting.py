"""Figures as tables and charts, for the terminal and for the page."""

import re
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table

from crate_jax.export.charts import Line, line_chart
from crate_jax.export.history import rule_names
from crate_jax.export.scores import Chart, Table
from crate_jax.score import figures as fig
from crate_jax.score.figures import Figure, Figures
from crate_jax.score.findings import RULES
from crate_jax.score.measuring import Protocol

_CONTROLS = {"cls_iou_random": "random weights", "cls_iou_other": "another image"}
_HEADS = {"best": "best head", "mean": "mean head", "single": "one head"}


def print_table(table: Table, console: rich.console.Console) -> None:
    """A table in the terminal."""
    drawn = rich.table.Table(title=table.title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for place, row in enumerate(table.rows):
        marked = [
            f"[bold]{cell}[/bold]" if (place, index) in table.best else cell
            for index, cell in enumerate(row)
        ]
        drawn.add_row(*marked)
    console.print(drawn)


def attention_table(figures: Figures, protocol: Protocol) -> Table | None:
    """IoU by layer: both rules, three ways over heads, random weights, baselines below."""
    if "cls_iou_all_ones" not in figures:
        return None
    kinds = [(rule, head, "cls_iou") for rule in RULES for head in _HEADS]
    for kind in _CONTROLS:
        if any(name.startswith(kind) for name in figures):
            kinds += [(rule, "best", kind) for rule in RULES]
    columns = ["layer"]
    columns += [f"{rule}: {_CONTROLS.get(kind, _HEADS[head])}" for rule, head, kind in kinds]
    rows, best = [], []
    values = {}
    for place, layer in enumerate(protocol.attention_layers):
        row = [f"{layer + 1}"]
        for column, (rule, head, kind) in enumerate(kinds, start=1):
            figure = figures[f"{kind}/{rule}/{head}/layer{layer + 1:02d}"]
            values.setdefault(column, []).append((figure.value, place))
            row.append(_percent(figure))
        rows.append(row)
    best = [(max(found)[1], column) for column, found in values.items()]
    for label, name in (("all ones", "cls_iou_all_ones"), ("centre box", "cls_iou_centre_box")):
        rows.append([label, _percent(figures[name]), *[""] * (len(kinds) - 1)])
    keep = f"{100 * protocol.keep:g} %"
    return Table(
        "[CLS] attention: mean IoU, per cent",
        f"A rule keeps {keep} of the attention's mass, or of the patches (area). Best head: chosen "
        "anew for every class of every image, so it grows with the number of heads. One head: the "
        "same for all images. Random weights and another image (the best head against the next "
        "image's objects) show what is owed to the architecture and to place. In brackets 95 % "
        "bootstrap intervals over images. Layers count from 1.",
        columns,
        rows,
        best,
    )


def mask_table(
    figures: Figures, protocol: Protocol, without: Mapping[tuple[int, float], int]
) -> Table | None:
    """Box and mask AP by layer and tau."""
    if not protocol.mask_layers:
        return None
    rows = []
    for layer in protocol.mask_layers:
        for tau in protocol.taus:
            prefix = fig.mask_prefix(layer, tau)
            cells = [
                _percent(figures[f"{prefix}/{kind}/{ap}"])
                for kind in ("box", "mask")
                for ap in ("AP50", "AP75", "AP")
            ]
            rows.append([f"{layer + 1}, {tau:g}", *cells, str(without[layer, tau])])
    return Table(
        "MaskCut: class-agnostic COCO AP, per cent",
        f"N = {protocol.max_masks}, every mask of score 1. In brackets 95 % bootstrap intervals "
        "over images.",
        [
            "layer, tau",
            *(f"{kind} {ap}" for kind in ("box", "mask") for ap in ("AP50", "AP75", "AP")),
            "without a mask",
        ],
        rows,
    )


def series_table(
    title: str, note: str, heading: str, series: Mapping[str, Figures], names: Mapping[str, str]
) -> Table | None:
    """A few figures under several conditions: noise, or steps of a run."""
    if not series:
        return None
    rows = [[label, *[_percent(found[name]) for name in names]] for label, found in series.items()]
    return Table(title, note, [heading, *names.values()], rows)


def headline(figures: Figures, protocol: Protocol) -> dict[str, str]:
    """The figures by which conditions are compared, name to heading.

    For each rule the best head at the layer that scores highest; AP at the last layer measured and
    at MaskCut's published tau, or the first that was asked for.
    """
    names = {}
    for rule in RULES:
        pattern = re.compile(rf"cls_iou/{rule}/best/layer(\d+)$")
        found = {n: f.value for n, f in figures.items() if pattern.match(n)}
        if found:
            best = max(found, key=found.get)
            names[best] = f"IoU, {rule}, layer {int(pattern.match(best)[1])}"
    if protocol.mask_layers:
        tau = 0.15 if 0.15 in protocol.taus else protocol.taus[0]
        prefix = fig.mask_prefix(protocol.mask_layers[-1], tau)
        names |= {f"{prefix}/{kind}/AP": f"{kind} AP" for kind in ("box", "mask")}
        names |= {f"{prefix}/{kind}/AP50": f"{kind} AP50" for kind in ("box", "mask")}
    return names


def charts(
    figures: Figures, protocol: Protocol, steps: Mapping[int, Figures] | None = None
) -> list[Chart]:
    """IoU and AP against the layer, AP against tau, and the headline figures against steps."""
    drawn = []
    layers = [layer + 1 for layer in protocol.attention_layers]
    for rule, name in rule_names(protocol.keep).items():
        lines = [
            _line(
                label,
                layers,
                [figures.get(f"{kind}/{rule}/best/layer{n:02d}") for n in layers],
                **style,
            )
            for label, kind, style in (
                ("trained", "cls_iou", {}),
                ("random", "cls_iou_random", {"tone": "muted", "dashed": True}),
            )
        ]
        for label, key in (("all ones", "cls_iou_all_ones"), ("centre box", "cls_iou_centre_box")):
            if key in figures and layers:
                level = figures[key].value
                lines.append(Line(label, [layers[0], layers[-1]], [level, level], 0.0, dashed=True))
        drawn.append(_chart(f"IoU by layer, {name}", "Best head.", lines, "layer", whole=True))
    for kind, note in (
        ("coding_rate", "Nats an image; lower is more compressed."),
        ("sparsity", "Fraction of zeros after the layer."),
    ):
        found = [figures.get(f"{kind}/layer{n:02d}") for n in layers]
        title = kind.replace("_", " ").capitalize()
        drawn.append(_chart(title, note, [_line("mean", layers, found)], "layer", whole=True))
    if len(protocol.mask_layers) > 1:
        x = [layer + 1 for layer in protocol.mask_layers]
        lines = [
            _line(
                f"{kind} AP", x, [_ap(figures, n - 1, protocol.taus[0], kind) for n in x], tone=tone
            )
            for kind, tone in (("box", "accent"), ("mask", 0.3))
        ]
        note = f"tau {protocol.taus[0]:g}."
        drawn.append(_chart("MaskCut AP by layer", note, lines, "layer", whole=True))
    if len(protocol.taus) > 1:
        layer = protocol.mask_layers[-1]
        lines = [
            _line(
                f"{kind} AP",
                protocol.taus,
                [_ap(figures, layer, t, kind) for t in protocol.taus],
                tone=tone,
            )
            for kind, tone in (("box", "accent"), ("mask", 0.3))
        ]
        drawn.append(_chart("MaskCut AP by tau", f"Layer {layer + 1}.", lines, "tau"))
    if steps and len(steps) > 1:
        for name, heading in headline(figures, protocol).items():
            line = _line("trained", list(steps), [found.get(name) for found in steps.values()])
            drawn.append(_chart(f"{heading} over steps", "A run's checkpoints.", [line], "step"))
    return [chart for chart in drawn if chart.svg]


def _ap(figures: Figures, layer: int, tau: float, kind: str) -> Figure | None:
    return figures.get(f"{fig.mask_prefix(layer, tau)}/{kind}/AP")


def _line(label: str, x: Sequence[float], found: Sequence[Figure | None], **style) -> Line:
    points = [
        (at, figure)
        for at, figure in zip(x, found, strict=True)
        if figure and figure.value is not None
    ]
    if points and all(figure.low is not None for _, figure in points):
        style |= {"low": [f.low for _, f in points], "high": [f.high for _, f in points]}
    return Line(
        label, [at for at, _ in points], [f.value for _, f in points], markers=True, **style
    )


def _chart(title: str, note: str, lines: list[Line], x_label: str, whole: bool = False) -> Chart:
    return Chart(title, note, line_chart(lines, title=title, x_label=x_label, whole_x=whole))


def _percent(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    text = f"{100 * figure.value:.1f}"
    if figure.low is not None:
        text += f" ({100 * figure.low:.1f}–{100 * figure.high:.1f})"
    return text
