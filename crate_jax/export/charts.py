"""Line charts as SVG that a page can hold and colour.

Matplotlib draws; text stays text, and colours become CSS expressions over the page's own
variables (`--ink-2`, `--line`, `--accent`, `--muted`, `--from`, `--to`), so that one drawing
serves light and dark.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

# Placeholders that matplotlib takes for colours. The last byte of a sequential one is its place.
_PLACEHOLDERS = {
    "#0a0b01": "var(--ink-2)",
    "#0a0b02": "var(--line)",
    "#0a0b03": "var(--accent)",
    "#0a0b04": "var(--muted)",
}
_TEXT, _GRID, _ACCENT, _MUTED = _PLACEHOLDERS
_MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: written at the line's end.
        x: f[points].
        y: f[points]; what is not finite is left out.
        tone: "accent", "muted", or a place in [0, 1] on the page's scale from early to late.
        low: lower end of an interval at each point, or None.
        high: its upper end.
        dashed: for a comparison.
        markers: dots at the points, for a few measured values.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str | float = "accent"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    markers: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    whole_x: bool = False,
    size: tuple[float, float] = (4.6, 2.9),
) -> Markup:
    """Draws lines over one pair of axes, each named at its end.

    Args:
        lines: at least one with a finite point.
        title: what is drawn, for readers who cannot see it; the page sets its own heading.
        x_label: below the horizontal axis.
        whole_x: ticks at whole numbers only (layers).
        size: inches at 72 points; the page scales it.

    Returns:
        An `<svg>` element; an empty Markup where no line has a finite point.
    """
    drawn = [line for line in map(_thinned, lines) if len(line.x)]
    if not drawn:
        return Markup("")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # identical runs give identical pages; ids differ between charts
        "font.size": 9,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "text.color": _TEXT,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, pad=5)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(x_label)
        for line in drawn:
            _draw(axes, line)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole_x, steps=[1, 2, 5, 10]))
        if not whole_x and max(abs(x) for line in drawn for x in line.x) >= 1:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _name_lines(axes, drawn)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata)
    return _as_page_element(buffer.getvalue(), title)


# The light half of templates/style.css.
_COLORS = {
    "ink": "#1f1b26",
    "ink-2": "#655f70",
    "line": "#e5e1d9",
    "accent": "#b02a52",
    "muted": "#706879",
    "from": "#8f86b8",
    "to": "#b02a52",
}


def panel(charts: Sequence[tuple[str, str]], width: int = 400) -> Markup:
    """Charts side by side with colours of their own, for a notebook or a page that has none.

    Args:
        charts: (heading, `<svg>` of `line_chart`) each.
        width: of a chart, in pixels; they go below each other where there is no room.

    Returns:
        HTML for `IPython.display.HTML`, dark on white whatever surrounds it.
    """
    colors = "".join(f"--{name}:{color};" for name, color in _COLORS.items())
    figure = '<figure style="margin:0;width:{}px"><figcaption style="font-weight:600">{}'
    figures = Markup("").join(
        Markup(figure + "</figcaption>{}</figure>").format(width, heading, Markup(svg))
        for heading, svg in charts
    )
    style = (
        f"{colors}display:flex;flex-wrap:wrap;gap:24px;padding:12px;"
        "background:#fff;color:var(--ink);font-family:sans-serif;font-size:14px"
    )
    return Markup('<div style="{}">{}</div>').format(style, figures)


def standalone(svg: Markup) -> str:
    """A chart of `line_chart` as a file of its own, dark on white."""
    colors = "".join(f"--{name}:{color};" for name, color in _COLORS.items())
    style = f"{colors}background:#fff;font-family:sans-serif"
    return str(svg).replace("<svg ", f'<svg style="{style}" ', 1) + "\n"


def _thinned(line: Line) -> Line:
    """Finite points only, and long lines as means of bins: a page needs no 100,000 steps."""
    columns = [line.x, line.y] if line.low is None else [line.x, line.y, line.low, line.high]
    table = np.asarray(columns, np.float64).reshape(len(columns), -1)
    table = table[:, np.isfinite(table).all(0)]
    if table.shape[1] > _MOST_POINTS:
        bins = np.array_split(table, _MOST_POINTS, axis=1)
        table = np.stack([part.mean(1) for part in bins], axis=1)
    low, high = (None, None) if line.low is None else table[2:]
    return Line(line.name, table[0], table[1], line.tone, low, high, line.dashed, line.markers)


def _color(tone: str | float) -> str:
    if isinstance(tone, str):
        return {"accent": _ACCENT, "muted": _MUTED}[tone]
    return f"#0a0c{round(255 * min(max(tone, 0), 1)):02x}"


def _draw(axes, line: Line) -> None:
    color = _color(line.tone)
    marker = "o" if line.markers or len(line.x) == 1 else None
    style = "--" if line.dashed else "-"
    axes.plot(line.x, line.y, color=color, linewidth=1.8, linestyle=style, marker=marker, ms=4)
    if line.low is not None:
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)


def _name_lines(axes, lines: Sequence[Line]) -> None:
    """Writes each name at the right, level with its line's end, moved apart where they meet."""
    low, high = axes.get_ylim()
    spacing = (high - low) * 0.075
    order = sorted(range(len(lines)), key=lambda i: lines[i].y[-1])
    wanted = np.array([lines[i].y[-1] for i in order])
    placed = _apart(wanted, spacing)
    for index, y in zip(order, placed, strict=True):
        line = lines[index]
        axes.annotate(
            line.name,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            color=_color(line.tone),
            va="center",
            annotation_clip=False,
        )


def _apart(wanted: np.ndarray, spacing: float) -> np.ndarray:
    """The nearest ascending positions at least `spacing` apart: least squares by pooling."""
    groups: list[list[float]] = []  # [sum of (wanted - own offset), members]
    for value in wanted - spacing * np.arange(len(wanted)):
        groups.append([value, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    starts = [total / members for total, members in groups for _ in range(int(members))]
    return np.array(starts) + spacing * np.arange(len(wanted))


def _as_page_element(svg: str, title: str) -> Markup:
    """The bare `<svg>`: scalable, named, coloured by the page."""
    svg = svg[svg.index("<svg") :]
    # Its style rule is for every element of the page, and its group names come again in each chart.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    for placeholder, expression in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, expression)
    svg = re.sub(r"#0a0c([0-9a-f]{2})", _sequential, svg)
    # The page's own typeface, at the size that matplotlib measured.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    return Markup(svg)


def _sequential(match: re.Match) -> str:
    share = math.floor(100 * int(match.group(1), 16) / 255 + 0.5)
    return f"color-mix(in oklab, var(--to) {share}%, var(--from))"
