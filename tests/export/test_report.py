"""The report's file: what it says, what it leaves out, what it never fetches."""

import base64
import hashlib
import json
import pathlib
import re

import numpy as np
import pytest

from crate_jax.export import charts, history, report, tables
from crate_jax.segmentation import attention


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report" / "index.html"
    assert report.write_report(path, **run) == path
    return path.read_text("utf-8")


def test_page_holds_everything_and_fetches_nothing(page):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert not re.search(r"url\((?!['\"]?(data:|#))", page)
    assert "@import" not in page
    assert len(page) < 1_500_000


def test_only_the_explorers_script_may_run(run, page, tmp_path):
    """By its hash; a page without an explorer has no script at all."""
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert [image["name"] for image in json.loads(data)["images"]] == [
        example["label"] for example in run["examples"][:4]
    ]
    hostile = [run["examples"][0] | {"label": "</script><script>alert(1)</script>"}]
    path = report.write_report(tmp_path / "hostile.html", **run | {"examples": hostile})
    assert path.read_text("utf-8").count("</script>") == 2
    plain = [{k: v for k, v in e.items() if k != "packed"} for e in run["examples"][:1]]
    path = report.write_report(tmp_path / "index.html", **{**run, "examples": plain, "config": {}})
    assert "script" not in path.read_text("utf-8").replace("runs no script", "")


def test_user_text_is_escaped(page):
    assert "&lt;script&gt;alert(" in page
    assert 'lang="en"' in page


def test_headline_figures_are_the_last_metrics(page, run):
    last = {}
    for line in run["history"]:
        last |= line
    iou = last["val/cls_iou/mass/best/layer05"]
    gain = iou - last["val/cls_iou_random/mass/best/layer05"]
    own = iou - last["val/cls_iou_other/mass/best/layer05"]
    values = re.findall(r'<p class="value">(.*?)</p>', page)
    loss = f"{last['val/loss']:.3f}"
    assert values == [
        f"{iou:.3f}",
        f"+{own:.3f}",
        f"+{gain:.3f}",
        f"{100 * last['val/top1']:.1f} %",
        loss,
    ]
    assert f"95 % interval {iou - 0.011:.3f}–{iou + 0.012:.3f}" in page


def test_layer_tables_of_the_page(page, run):
    """Every measured layer beside its controls, in HTML as in the terminal."""
    last = {}
    for line in run["history"]:
        last |= line
    text = re.sub(r"<small>.*?</small>|<[^>]+>", " ", page)
    for name, heading in (("mass", "IoU, mass rule"), ("area", "IoU, area rule")):
        table = text[text.index(heading) :].split("a centred box")[0]
        for layer in range(1, 7):
            values = [
                last[f"val/cls_iou{kind}/{name}/{head}/layer{layer:02d}"]
                for kind, head in (
                    *(("", "best"), ("_other", "best"), ("_own_minus_other", "best")),
                    *(("_random", "best"), ("_gain", "best")),
                )
            ]
            signs = ("", "", "+", "", "+")
            shown = [f"{value:{sign}.3f}" for value, sign in zip(values, signs, strict=True)]
            assert re.search(rf"\s{layer}\s+" + r"\s+".join(map(re.escape, shown)), table)
    assert "a centred box <b>0.334</b> (0.323–0.346)" in page
    assert page.count('<div class="bar') - page.count('<div class="bars') == 5
    assert "Inside the layers" in page
    assert tables.LAYERS_NOTE[:40] in page


def test_every_picture_of_every_layer_is_there(page):
    assert page.count('class="map pixels"') == 12 * 6 * 6
    assert page.count('class="head best-mass') == 12 * 6
    assert page.count("<svg role") == 6
    assert 'id="layer-5" checked' in page


def test_another_share_is_kept_and_named(run, page, tmp_path):
    """`config.evaluation.keep` moves the scores; the page must not call them 60 %."""
    few = {**run, "examples": run["examples"][:1], "config": {}}
    path = report.write_report(tmp_path / "index.html", **few, keep=0.3)
    text = path.read_text("utf-8")
    assert "60 %" in page
    assert "60 %" not in text
    assert text.count("30 % of mass") >= 4
    example = run["examples"][0]
    kept = attention.keep_area(example["maps"][-1].reshape(len(example["maps"][-1]), -1), 0.3)
    shadow = report._shadow_png(np.asarray(kept)[0].reshape(example["maps"].shape[2:]))
    assert shadow in text


def test_the_same_run_gives_the_same_bytes(run, page, tmp_path):
    again = report.write_report(tmp_path / "index.html", **run)
    assert again.read_text("utf-8") == page


def test_parts_without_data_are_left_out(tmp_path):
    path = report.write_report(tmp_path / "index.html", title="Empty", config={}, history=[])
    page = path.read_text()
    assert "<section" not in page
    lines = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": float("nan")}]
    report.write_report(path, title="MAE", config={"a": {"b": 1}}, history=lines)
    page = path.read_text()
    assert "Training loss" in page
    assert "a.b" in page
    assert "Layer by layer" not in page


def test_summary_stands_over_the_history(run, tmp_path):
    summary = {"val/top1": 0.123}
    path = report.write_report(
        tmp_path / "i.html", title="t", config={}, history=run["history"], summary=summary
    )
    assert "12.3 %" in path.read_text()


def test_big_maps_keep_the_page_below_three_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    photo = np.repeat(np.repeat(rng.integers(0, 256, (30, 40, 3), np.uint8), 16, 0), 16, 1)
    maps = rng.random((12, 12, 30, 40)).astype(np.float32)
    example = {"image": photo, "maps": maps}
    path = report.write_report(
        tmp_path / "i.html", title="t", config={}, history=[], examples=[example] * 12
    )
    page = path.read_text()
    assert path.stat().st_size < 3_000_000
    shown = [int(n) for n in re.findall(r'id="layer-(\d+)"', page)]
    assert shown == [2, 4, 6, 8, 10, 12]
    assert "0.00</span>" not in page  # no truth, no IoU
    assert "--columns: 6; --phone-columns: 3" in page


def test_examples_may_have_grids_that_do_not_divide_them_and_their_own_layers(tmp_path):
    example = {
        "image": np.zeros((50, 70, 3), np.uint8),
        "mask": np.ones((50, 70), bool),
        "maps": np.full((2, 3, 4, 5), 0.05),
        "layers": [9, 11],
    }
    path = report.write_report(
        tmp_path / "i.html", title="t", config={}, history=[], examples=[example]
    )
    page = path.read_text()
    assert re.findall(r'id="layer-(\d+)"( checked)?', page) == [("9", ""), ("11", " checked")]
    assert page.count('<span class="by-mass">0.60</span>') == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.zeros((2, 3, 4))}, r"maps: expected f\[layers, heads, rows, columns\]"),
        ({"mask": np.zeros((9, 9), bool)}, r"image's size \(8, 8\), got \(9, 9\)"),
        ({"image": np.zeros((8, 8, 3))}, "uint8"),
        ({"layers": [1]}, "layers: expected a number for each of 2"),
    ],
)
def test_wrong_examples_are_named(tmp_path, change, message):
    example = {"image": np.zeros((8, 8, 3), np.uint8), "maps": np.ones((2, 1, 2, 2))} | change
    with pytest.raises(ValueError, match=message):
        report.write_report(
            tmp_path / "i.html", title="t", config={}, history=[], examples=[example]
        )
    assert not (tmp_path / "i.html").exists()


def test_gallery_embeds_or_links(tmp_path):
    image = np.zeros((500, 300, 3), np.uint8)
    items = [
        {
            "name": "<b>.jpg",
            "panels": [("image", image), ("masks", "overlays/b.png")],
            "confidences": [0.75, 0.5],
            "note": "2 masks",
        }
    ]
    path = report.write_gallery(tmp_path / "g.html", title="Photos", items=items, settings={"k": 1})
    page = path.read_text()
    assert "&lt;b&gt;.jpg" in page
    assert 'src="overlays/b.png"' in page
    assert page.count("<meter") == 2
    empty = report.write_gallery(tmp_path / "e.html", title="None", items=[], settings={})
    assert "No image." in empty.read_text()


def test_history_of_a_run_that_is_being_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "a": 2.0}\n{"step": 2, "a": 3.5}\n{"step": 3, "a"'
    )
    read = history.read(tmp_path)
    assert read.over_steps("a") == ([1, 2], [2.0, 3.5])
    assert read.last == {"a": 3.5}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n[3]\n{"step": 2, "a": 3.5}\n')
    with pytest.raises(ValueError, match="with its step in line 2"):
        history.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        history.read(tmp_path / "elsewhere")


# -- charts ---------------------------------------------------------------------------------------


def test_charts_take_their_colours_from_the_page():
    lines = [
        charts.Line("a", [0, 1], [1, 2], low=[0, 1], high=[2, 3]),
        charts.Line("b", [0, 1], [1, 3], tone=0.5),
    ]
    svg = charts.line_chart(lines, title='say "x" & <y>', x_label="step")
    assert "var(--accent)" in svg
    assert "color-mix(in oklab, var(--to) 50%, var(--from))" in svg
    assert "#0a0" not in svg
    assert 'aria-label="say &#34;x&#34; &amp; &lt;y&gt;"' in svg
    assert not re.search(r'<svg[^>]* (width|height)="', svg)
    assert "<style" not in svg


def test_a_panel_of_charts_defines_every_colour_that_it_uses():
    lines = [charts.Line("a", [0, 1], [1, 2]), charts.Line("b", [0, 1], [1, 3], tone=0.5)]
    svg = charts.line_chart(
        [*lines, charts.Line("c", [0, 1], [2, 1], "muted")], title="t", x_label="x"
    )
    panel = charts.panel([("<Loss>", svg), ("Accuracy", svg)])
    assert panel.count("<svg") == 2
    assert "&lt;Loss&gt;" in panel
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", panel))
    assert used >= {"--accent", "--muted", "--ink-2", "--line", "--to", "--from"}
    style = (pathlib.Path(charts.__file__).parent / "templates" / "style.css").read_text()
    for name in used:
        color = re.search(rf"{name}:(#[0-9a-f]+);", panel)[1]
        assert f"{name}: {color};" in style[: style.index("@media")], "the page's own light colours"


def test_charts_leave_out_what_is_not_finite_and_thin_what_is_long():
    nothing = charts.Line("a", [0, 1], [np.nan, np.inf])
    assert charts.line_chart([nothing], title="t", x_label="x") == ""
    steps = np.arange(100_000)
    long = charts.line_chart([charts.Line("a", steps, np.sin(steps))], title="t", x_label="x")
    assert len(long) < 40_000


def test_names_of_lines_are_kept_apart_and_in_order():
    wanted = np.array([0.1, 0.1, 0.12, 0.5, 0.9])
    placed = charts._apart(wanted, 0.1)
    assert (np.diff(placed) >= 0.1 - 1e-12).all()
    assert placed[:3].mean() == pytest.approx(wanted[:3].mean())
    np.testing.assert_allclose(placed[3:], wanted[3:])


# -- colours --------------------------------------------------------------------------------------


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(page, scheme):
    """WCAG 2.1 AA: 4.5 for text; 3 for graphics."""
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))

    def contrast(front, back):
        bright, dim = sorted([luminance(colors[front]), luminance(colors[back])], reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for back in ("paper", "card"):
        for front in ("ink", "ink-2", "accent", "good", "bad", "muted", "to"):
            assert contrast(front, back) >= 4.5, (front, back)
        assert contrast("from", back) >= 3
