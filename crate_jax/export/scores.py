"""The scores of a network on a dataset, as one HTML file that needs nothing else."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from crate_jax.export.pages import write_page
from crate_jax.export.tables import Table


@dataclass(frozen=True)
class Chart:
    """A chart with its heading: `svg` from `charts.line_chart`."""

    title: str
    note: str
    svg: Markup


def write_scores(
    path: str | os.PathLike,
    *,
    title: str,
    tables: Sequence[Table],
    charts: Sequence[Chart] = (),
    settings: Mapping,
    environment: Mapping,
    lede: str = "",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Writes the page.

    Args:
        path: the file. Written whole or not at all.
        title: the heading.
        tables: in their order.
        charts: those with an empty drawing are left out.
        settings: what the scores were measured with.
        environment: versions and devices.
        lede: a sentence or two below the heading.
        facts: short things worth knowing, label to text.

    Returns:
        The path.
    """
    return write_page(
        path,
        "scores.html",
        title=title,
        lede=lede,
        facts=facts,
        tables={"Settings": settings, "Environment": environment},
        score_tables=tables,
        charts=[chart for chart in charts if chart.svg],
    )
