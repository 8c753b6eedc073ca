"""Tables, drawn in the terminal and on a page; above all the one of layers.

A `Table` holds text; `print_table` draws it in a terminal, the macro of templates/tables.html on a
page. `layer_tables` is what the evaluation in the loop, the report of a run and `score` show of
`segmentation.emergence.estimates`: every layer beside every control.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import rich.box
import rich.console
import rich.table
from rich.text import Text

from crate_jax.segmentation.emergence import Estimate

NONE = "–"
# What is measured of a head, and by what its values are compared with those that need no learning.
MEASURES = {
    "cls_iou/mass": "IoU, mass rule",
    "cls_iou/area": "IoU, area rule",
    "cls_auroc": "AUROC",
    "cls_ap": "average precision",
    "cls_pointing": "pointing",
}
_IOU_BASELINES = {
    "the whole image": "cls_iou_all_ones",
    "a centred box": "cls_iou_centre_box",
}
_BASELINES = {
    "cls_iou/mass": _IOU_BASELINES,
    "cls_iou/area": _IOU_BASELINES,
    "cls_ap": {"chance, the object's share": "object_fraction"},
}
# Kind and head of the columns; differences have a sign.
_COLUMNS = {
    "best": ("", "best"),
    "other": ("_other", "best"),
    "own − other": ("_own_minus_other", "best"),
    "random": ("_random", "best"),
    "trained − random": ("_gain", "best"),
    "mean": ("", "mean"),
    "fixed": ("", "fixed"),
}
_SIGNED = ("_own_minus_other", "_gain")
LAYERS_NOTE = (
    "Means over images, with 95 % bootstrap intervals over images; layers count from 1. Best: the "
    "best head, chosen anew for every object with the truth at hand, so it grows with the number "
    "of heads. Other: the same maps against the next image's objects, a prior on place. Random: "
    "the same network with random weights. Mean: over the heads. Fixed: one head for all images, "
    "chosen on the other half of them."
)
_NOTES = {
    "cls_iou/mass": "Of the patches that hold {keep:g} % of a head's attention.",
    "cls_iou/area": "Of the {keep:g} % of the patches with the most attention.",
    "cls_auroc": "How surely attention tells the object's pixels from the others; 0.5 is chance.",
    "cls_ap": "Area under precision and recall over all thresholds.",
    "cls_pointing": "Share of images whose most attended patch lies on the object.",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell's text, its interval or "", and how it is shown.

    Attributes:
        text: the value.
        interval: "low–high", or "".
        best: the highest of its column.
        control: what the others are compared with.
        signed: a difference: a terminal that is narrow shows the interval of these alone.
    """

    text: str
    interval: str = ""
    best: bool = False
    control: bool = False
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for the terminal and the page.

    Attributes:
        title: what it shows.
        note: how to read it, or "".
        columns: headings, the first of the rows' names.
        rows: as many cells as columns.
        footer: (label, value) of what holds for all rows.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    footer: Sequence[tuple[str, Cell]] = ()


def rule_names(keep: float) -> dict[str, str]:
    """What the two rules keep, by rule: {"mass": "60 % of mass", "area": "60 % of area"}."""
    return {rule: f"{100 * keep:g} % of {rule}" for rule in ("mass", "area")}


def from_metrics(values: Mapping[str, float], prefix: str = "val/") -> dict[str, Estimate]:
    """The reverse of `emergence.flatten`: metrics NAME, NAME/low, NAME/high under a prefix.

    Args:
        values: metrics by name; what is no number is left out.
        prefix: of the names; the result is without it.

    Returns:
        Estimates by name; ends that are not there are NaN.
    """
    numbers = {
        name.removeprefix(prefix): float(value)
        for name, value in values.items()
        if name.startswith(prefix) and isinstance(value, int | float)
    }
    return {
        name: Estimate(value, *(numbers.get(f"{name}/{end}", math.nan) for end in ("low", "high")))
        for name, value in numbers.items()
        if not name.endswith(("/low", "/high"))
    }


def cell(estimate: Estimate | None, *, percent: bool = False, **shown: bool) -> Cell:
    """A number as a cell; a dash where it is not there or not a number.

    Args:
        estimate: the number and the ends of its interval.
        percent: as per cent with one digit, else with three.
        **shown: the other fields of `Cell`.
    """
    if estimate is None or not math.isfinite(estimate.value):
        return Cell(NONE, **shown)
    sign = "+" if shown.get("signed") else ""
    low, value, high = (
        f"{100 * x:{sign}.1f}" if percent else f"{x:{sign}.3f}"
        for x in (estimate.low, estimate.value, estimate.high)
    )
    interval = f"{low}, {high}" if sign else f"{low}–{high}"
    return Cell(value, interval if math.isfinite(estimate.low) else "", **shown)


def layer_tables(estimates: Mapping[str, Estimate], keep: float) -> list[Table]:
    """The tables of layers of all that was measured: one a measure, and what the layers do.

    Args:
        estimates: as `emergence.estimates` names them.
        keep: the part of mass or area that the two rules keep.
    """
    tables = [layer_table(estimates, measure, keep) for measure in MEASURES]
    return [table for table in (*tables, _inside(estimates)) if table is not None]


def layer_table(estimates: Mapping[str, Estimate], measure: str, keep: float) -> Table | None:
    """One of `MEASURES`, layer by layer, beside its controls; None where it was not measured."""
    stem, slash, rule = measure.partition("/")
    prefixes = {
        title: f"{stem}{kind}{slash}{rule}/{head}/" for title, (kind, head) in _COLUMNS.items()
    }
    if not (layers := _layers(estimates, prefixes.values())):
        return None
    controls = [title for title, (kind, _) in _COLUMNS.items() if kind in ("_other", "_random")]
    signed = [title for title, (kind, _) in _COLUMNS.items() if kind in _SIGNED]
    columns = {
        title: _column(estimates, prefix, layers, title in controls, title in signed)
        for title, prefix in prefixes.items()
        if any(prefix + layer in estimates for layer in layers)
    }
    footer = [
        (label, cell(estimates[name]))
        for label, name in _BASELINES.get(measure, {}).items()
        if name in estimates
    ]
    return Table(
        f"[CLS] attention and objects: {MEASURES[measure]}",
        _NOTES[measure].format(keep=100 * keep),
        ["layer", *columns],
        _rows(layers, columns.values()),
        footer,
    )


def _inside(estimates: Mapping[str, Estimate]) -> Table | None:
    """Coding rate and sparsity, layer by layer."""
    prefixes = {"coding rate": "coding_rate/", "sparsity": "sparsity/"}
    if not (layers := _layers(estimates, prefixes.values())):
        return None
    columns = [[cell(estimates.get(p + layer)) for layer in layers] for p in prefixes.values()]
    return Table(
        "Inside the layers",
        "Coding rate: nats for an image's tokens in the layer's subspaces; lower is more "
        "compressed. Sparsity: share of exact zeros after the layer.",
        ["layer", *prefixes],
        _rows(layers, columns),
    )


def _layers(estimates: Mapping[str, Estimate], prefixes: Iterable[str]) -> list[str]:
    pattern = re.compile(f"({'|'.join(map(re.escape, prefixes))})(layer\\d+)")
    return sorted({m[2] for name in estimates if (m := pattern.fullmatch(name))})


def _column(
    estimates: Mapping[str, Estimate],
    prefix: str,
    layers: Sequence[str],
    control: bool,
    signed: bool,
) -> list[Cell]:
    found = [estimates.get(prefix + layer) for layer in layers]
    highest = max(estimate.value for estimate in found if estimate is not None)
    return [
        cell(
            estimate,
            best=not control and estimate is not None and estimate.value == highest,
            control=control,
            signed=signed,
        )
        for estimate in found
    ]


def _rows(layers: Sequence[str], columns: Iterable[Sequence[Cell]]) -> list[list[Cell]]:
    names = [Cell(f"{int(layer.removeprefix('layer'))}") for layer in layers]
    return [list(row) for row in zip(names, *columns, strict=True)]


def print_tables(tables: Iterable[Table], width: int = 120) -> None:
    """Tables in the terminal; `width` is that of a log file, a terminal says its own.

    Every number has its interval where that fits the width, else only differences have.
    """
    console = rich.console.Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else width, highlight=False
    )
    unbounded = console.options.update_width(10_000)
    for table in tables:
        drawn = _drawn(table, lambda cell: True)
        if console.measure(drawn, options=unbounded).maximum > console.width:
            drawn = _drawn(table, lambda cell: cell.signed)
        console.print(drawn)
        for label, value in table.footer:
            console.print(Text(f"  {label} {_with_interval(value)}"))


def _drawn(table: Table, shown: Callable[[Cell], bool]) -> rich.table.Table:
    """The table, with the intervals of the cells that are `shown`."""
    drawn = rich.table.Table(
        title=Text(table.title), box=rich.box.SIMPLE_HEAD, title_justify="left"
    )
    for index, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        cells = [(cell, _with_interval(cell) if shown(cell) else cell.text) for cell in row]
        drawn.add_row(
            *(
                Text(text, style="bold" if cell.best else "dim" if cell.control else "")
                for cell, text in cells
            )
        )
    return drawn


def _with_interval(cell: Cell) -> str:
    return f"{cell.text} [{cell.interval}]" if cell.interval else cell.text
