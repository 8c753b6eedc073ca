"""docs/emergence.md: what follows from results.json, and that the page says exactly that."""

import re

import numpy as np
import pytest

from benchmarks.emergence import differences, document, drawings, grid
from benchmarks.emergence.answer import Answer
from benchmarks.emergence.results_file import Results
from crate_jax.segmentation import emergence
from crate_jax.segmentation.emergence import Estimate

COMMITTED = document.PAGE.parent / "results" / "emergence.json"
CPU = grid.BUDGETS["cpu"]


def groups(rng, seeds, size=50, seed_sd=0.03, scene_sd=0.02, scenes=None, mean=0.0):
    """f64[seeds, groups]: an effect of the seed, one of the scenes, and the rest."""
    scenes = np.zeros(size) if scenes is None else scenes
    return (
        mean + rng.normal(0, seed_sd, (seeds, 1)) + scenes + rng.normal(0, scene_sd, (seeds, size))
    )


@pytest.mark.parametrize(
    ("ours", "reference", "seed_sd"), [(5, 5, 0.03), (5, 3, 0.03), (3, 3, 0.03), (5, 5, 0.0)]
)
def test_intervals_cover(ours, reference, seed_sd):
    """Of the true difference 0 in about 95 of 100 repetitions of the whole experiment."""
    rng, covered, repeats = np.random.default_rng(0), 0, 250
    for _ in range(repeats):
        scenes = rng.normal(0, 0.05, 50)
        terms = [
            groups(rng, n, seed_sd=seed_sd, scenes=factor * scenes)
            for n, factor in ((ours, 1.5), (reference, 0.5))
        ]
        found = differences.interval(terms, (1, -1), samples=1000)
        covered += found.low < 0 < found.high
    assert 0.915 <= covered / repeats <= 0.995


def test_interval_of_seeds_alone_is_students():
    """Without scenes to vary, Welch's interval with pooled degrees of freedom."""
    ours = np.tile([[0.1], [0.2], [0.3], [0.4], [0.5]], 50)
    found = differences.interval([ours, ours - 0.3], (1, -1), samples=40_000)
    half = 2.306 * np.sqrt(2 * np.var(ours[:, 0], ddof=1) / 5)  # t of 8 degrees of freedom
    assert found.value == pytest.approx(0.3)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_scenes_are_drawn_together():
    """What both networks share in a scene does not widen the interval of their difference."""
    rng = np.random.default_rng(0)
    scenes = rng.normal(0, 1, 50)
    terms = [groups(rng, 5, seed_sd=0.01, scene_sd=0.01, scenes=scenes) for _ in range(2)]
    found = differences.interval(terms, (1, -1), samples=2000)
    assert found.high - found.low < 0.1


def test_choosing_the_layer_is_not_rewarded():
    """Layers that differ by chance alone: the best of them on the same scenes seems better."""
    rng = np.random.default_rng(0)
    layers = rng.normal(0, 1, (400, 1, 8, 50))
    chosen = np.array([differences.best_layer(one).mean() for one in layers])
    rewarded = layers.mean(axis=(1, 3)).max(axis=1)
    assert abs(chosen.mean()) < 0.03
    assert rewarded.mean() > 0.15
    layers[:, :, 5] += 10
    assert differences.chosen_layers(layers[0]) == (5, 5)
    np.testing.assert_allclose(differences.best_layer(layers[0]), layers[0][:, 5])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "holds"),
        (-0.2, -0.01, "is reversed"),
        (-0.02, 0.03, "fails"),
        (-0.02, 0.04, "is not decided"),
    ],
)
def test_verdict(low, high, verdict):
    assert differences.verdict(Estimate((low + high) / 2, low, high)) == verdict


def curve(top1, values):
    return {"curves": {"top1": top1, differences.CURVE: [[0.0, value] for value in values]}}


def test_equal_accuracy():
    """Ours ends at 0.5; the reference passes it half way between two evaluations."""
    ours = [curve([0.1, 0.5], [0.0, 0.3 + d]) for d in (-0.01, 0.01)]
    reference = [curve([0.2, 0.4, 0.6], [0.0, 0.1, 0.2 + d]) for d in (-0.02, 0.02)]
    found = differences.equal_accuracy(ours, reference)
    assert found.top1 == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(0.3 - 0.15)
    assert found.difference.low < 0.15 < found.difference.high


def made_up(runs, seed=0):
    """Results with invented numbers: of CRATE 0.2, of all others 0.1."""
    results, rng = Results.of("cpu"), np.random.default_rng(seed)
    layers = np.array([0.1, 0.3, 0.6, 1.0])

    def three(value):
        return [round(value, 3), round(value - 0.01, 3), round(value + 0.01, 3)]

    for run in runs:
        if results.rate(run.condition) is None:
            trials = [{"rate": r, "loss": 3 + r, "top1": 0.1} for r in (0.01, 0.02)]
            results.add_sweep(run.condition, trials)
        best = (0.2 if run.condition.network == "crate" else 0.1) + rng.normal(0, 0.01)
        by_group = 1000 * (best * layers[:, None] + rng.normal(0, 0.02, (4, grid.GROUPS)))
        kinds = ("", "_other", "_random", "_own_minus_other")
        names = [name.format(kind) for name in document._MEASURED for kind in kinds]
        stems = ("iou_own_minus_other/area", "auroc_own_minus_other")
        stems += ("ap_own_minus_other", "pointing_own_minus_other")
        final = {name: [three(best * layer) for layer in layers] for name in names}
        final |= {f"similarity_{stem}": three(best) for stem in stems}
        final |= {name: three(0.1) for name in ("top1", "cls_iou_all_ones", "cls_iou_centre_box")}
        final["maskcut_mask_ap"] = [0.1] * 4
        measured = {m: np.rint(by_group).astype(int).tolist() for m in emergence.MEASURES}
        shown = {
            "config_hash": "0",
            "rate": 0.01,
            "parameters": 1000,
            "images_per_second": 100.0,
            "curves": {
                "scenes": [48_000, 96_000],
                "top1": [0.1, 0.5],
                differences.CURVE: [(best * layers / 2).tolist(), (best * layers).tolist()],
            },
            "final": {"learned": final, "held_out": final},
            "groups": dict.fromkeys(("learned", "held_out", "small", "medium", "large"), measured),
        }
        results.add_run(run, shown)
    colour = {"colour_iou/mass": three(0.2), "colour_iou_other/mass": three(0.1)}
    sizes = {"small": [0.04, 0.08], "medium": [0.08, 0.12], "large": [0.12, 0.3]}
    results.content["scenes"] = {"learned": colour, "held_out": colour, "sizes": sizes}
    return results


def text_of(results):
    return document.text(results, Answer.of(results), "emergence")


def words(text):
    """In one line."""
    return " ".join(text.split())


def test_text_of_a_whole_grid():
    results = made_up(grid.runs(CPU))
    text = text_of(results)
    assert text.startswith("**The claim holds** on these scenes: D = +0.1")
    assert "All 53 runs are done." in text
    assert "It lies above 0 with: IoU, area rule (+0.1" in words(text)
    assert "Other operators, less the ViT: CRATE-MLP" in words(text)
    assert "nan" not in text
    assert "Small 0.040 to 0.080, medium 0.080 to 0.120, large 0.120 to 0.300." in words(text)
    sizes = text.split("### Sizes of objects")[1].split("###")[0]
    assert re.search(r"^\| CRATE \| ViT( \| \+0\.1\d\d \[[^]]+\]){3} \|$", sizes, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(row.split(" | ")) > 1 for row in rows)
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_text_of_part_of_a_grid_says_what_is_missing():
    runs = list(grid.runs(CPU))
    text = words(text_of(made_up(runs[:8])))
    assert "So far, with 2 seeds of each." in text
    assert "Not run yet: 45 of 53 runs, 8.9 hours" in text
    assert "ViT, AdamW (seed 0, 1, 2)" in text
    assert "The main comparison needs two seeds" in words(text_of(made_up(runs[:1])))


def test_a_budget_without_its_part_of_the_page_is_refused():
    with pytest.raises(ValueError, match="got smoke; render those of cpu or gpu"):
        document.written(Results.of("smoke"), COMMITTED)
    page = document.PAGE.read_text()
    written = document.written(made_up(list(grid.runs(CPU))[:8]), COMMITTED)[document.PAGE]
    assert "So far, with 2 seeds" in words(written.split("<!-- end of results of cpu -->")[0])
    before, after = (text.split("## With an accelerator")[1] for text in (page, written))
    assert before == after


def test_other_pages_say_what_is_decided_and_where_it_does_not_hold():
    results = made_up(grid.runs(CPU))
    for row in results.content["runs"]:
        if row["network"] == "crate" and row["optimizer"] == "adamw":
            row["groups"]["learned"]["mass"] = [[50] * grid.GROUPS] * 4
    written = document.written(results, COMMITTED)
    assert [path.name for path in written] == [
        "emergence.md",
        "README.md",
        "reproduce_the_paper.md",
    ]
    for page in written.values():
        assert "**The claim holds** on these scenes: D = +0.1" in words(page)
        assert "D lies below 0 with: both with AdamW (-0.0" in words(page)


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_pages_say_what_the_committed_results_say(budget):
    path = COMMITTED if budget == "cpu" else COMMITTED.with_name("emergence_gpu.json")
    results = Results.read(path, budget)
    for page, written in document.written(results, path).items():
        assert page.read_text() == written, f"{page.name}: run benchmarks.emergence --render"
    for name in drawings.drawn(results) if results.content["runs"] else ():
        assert document.chart_path(path, name).is_file()


def test_set_up_is_that_of_the_results_and_not_of_a_later_recipe():
    results = Results.of("cpu")
    recipe = results.content["recipe"] = grid.recipe(CPU)
    recipe["config"]["steps"] = 1
    found = document.written(results, COMMITTED)[document.PAGE]
    assert f"A run: {recipe['config']['batch_size']} scenes" in words(found)


def test_page_has_the_numbers_of_the_grid():
    """What was written before the grid was run is what is run."""
    page = words(document.PAGE.read_text().split("## Results")[0])
    learned, held_out = f"{CPU.learned:,}", f"{CPU.held_out:,}"
    for phrase in (
        f"are tried on {CPU.sweep_images:,} scenes",
        f"first {grid.LEARNED + grid.HELD_OUT} objects the last {grid.HELD_OUT}",
        f"{learned} held-out scenes of the hundred learned objects, {held_out} of the twenty",
        f"first {CPU.cut} scenes",
        f"drawn as {grid.GROUPS} groups",
        f"within ±{differences.NO_DIFFERENCE}",
        "0.5, 1 and 2 times",
        "5 seeds each",
        f"{grid.BUDGETS['gpu'].images:,} scenes a run",
    ):
        assert phrase in page, phrase
    assert (CPU.factors, CPU.seeds, CPU.fewer, CPU.evaluations) == ((0.5, 1, 2), 5, 3, 6)


def test_charts_have_a_line_for_each_network_that_is_done():
    found = drawings.drawn(made_up(list(grid.runs(CPU))[:6]))
    assert set(found) == set(drawings.TITLES)
    for svg in found.values():
        assert svg.startswith("<svg style=")
        assert "--accent:#" in svg
        for title in ("CRATE", "ViT", "CRATE-MLP", "CRATE-MHSA"):
            assert f">{title}</text>" in svg
