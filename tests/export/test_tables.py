"""The one table of layers: what stands in it, in the terminal and on a page."""

import math

import jinja2
import numpy as np
import pytest

from crate_jax.export import tables
from crate_jax.export.tables import Cell, Estimate
from crate_jax.segmentation import emergence


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_columns_are_what_was_measured_and_the_highest_is_marked():
    estimates = tables.from_metrics(
        {
            "val/cls_iou/mass/best/layer01": 0.2,
            "val/cls_iou/mass/best/layer02": 0.5,
            "val/cls_iou_random/mass/best/layer01": 0.8,
            "val/cls_iou/mass/mean/layer01": 0.4,
            "val/cls_iou/mass/mean/layer02": 0.1,
            "val/cls_iou_own_minus_other/mass/best/layer02": -0.01,
            "val/cls_iou_own_minus_other/mass/best/layer02/low": -0.02,
            "val/cls_iou_own_minus_other/mass/best/layer02/high": 0.005,
            "val/cls_iou_all_ones": 0.25,
            "val/loss": None,
            "train/loss": 3.0,
        }
    )
    table = tables.layer_table(estimates, "cls_iou/mass", 0.3)
    assert table.columns == ["layer", "best", "own − other", "random", "mean"]
    assert texts(table) == [
        ["1", "0.200", "–", "0.800", "0.400"],
        ["2", "0.500", "-0.010", "–", "0.100"],
    ]
    assert table.rows[1][2].interval == "-0.020, +0.005"
    best = [[cell.best for cell in row] for row in table.rows]
    assert best == [[False, False, False, False, True], [False, True, True, False, False]]
    assert table.footer == [("the whole image", Cell("0.250"))]
    assert "30 %" in table.note
    assert tables.layer_tables(estimates, 0.3) == [table]
    assert tables.layer_table(estimates, "cls_auroc", 0.3) is None


def test_every_estimate_of_emergence_has_its_place():
    """Names that the tables read are those that are given: none is lost on the way."""
    rng = np.random.default_rng(0)
    measured, random = emergence.Measured(), emergence.Measured()
    for _ in range(6):
        mask = rng.random((8, 8)) < 0.4
        objects = emergence.objects_of_mask(mask, (4, 4))
        for part in (measured, random):
            maps = rng.random((2, 3, 16)).astype(np.float32)
            part.add(maps, objects, rng.random(2), rng.random(2))
    estimates = emergence.estimates(measured, random, samples=50)
    drawn = tables.layer_tables(estimates, 0.6)
    assert [table.title.rpartition(": ")[2] for table in drawn] == [
        *tables.MEASURES.values(),
        "Inside the layers",
    ]
    for table, measure in zip(drawn[:5], tables.MEASURES, strict=True):
        stem, slash, rule = measure.partition("/")
        kinds = ("", "_other", "_own_minus_other", "_random", "_gain")
        names = [f"{stem}{kind}{slash}{rule}/best" for kind in kinds]
        names += [f"{measure}/mean", f"{measure}/fixed"]
        assert len(table.columns) == 8
        for index, row in enumerate(table.rows, start=1):
            found = [estimates[f"{name}/layer{index:02d}"] for name in names]
            assert [float(cell.text) for cell in row[1:]] == pytest.approx(
                [estimate.value for estimate in found], abs=5e-4
            )
            assert all(cell.interval for cell in row[1:])
    again = tables.from_metrics(emergence.flatten(estimates), prefix="")
    assert again == estimates


def test_cells():
    assert tables.cell(Estimate(0.0176, 0.01, 0.031), percent=True) == Cell("1.8", "1.0–3.1")
    assert tables.cell(Estimate(math.nan, math.nan, math.nan)) == Cell("–")
    assert tables.cell(None) == Cell("–")


def test_drawn_in_the_terminal_and_on_a_page(capsys):
    rows = [
        [Cell("1"), Cell("0.5", "0.4–0.6", best=True), Cell("+0.1", "+0.0, +0.2", signed=True)],
        [Cell("<b>"), Cell("[red]", control=True), Cell("–")],
    ]
    table = tables.Table(
        "A title", "A note", ["layer", "own", "gain"], rows, [("box", Cell("0.2"))]
    )
    tables.print_tables([table])
    shown = capsys.readouterr().out
    for text in ("A title", "layer", "0.5 [0.4–0.6]", "+0.1 [+0.0, +0.2]", "[red]", "box 0.2"):
        assert text in shown
    tables.print_tables([table], width=40)  # too narrow for all intervals
    shown = capsys.readouterr().out
    assert "+0.1 [+0.0, +0.2]" in shown
    assert "0.4–0.6" not in shown
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crate_jax.export"), autoescape=True
    )
    page = environment.get_template("tables.html").module.draw([table])
    assert "<mark>0.5</mark><small>0.4–0.6</small>" in page
    assert "&lt;b&gt;" in page
    assert "<b>0.2</b>" in page
