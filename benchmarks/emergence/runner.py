"""Trains what is missing of the grid, one run at a time, and measures it."""

import json
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from benchmarks.emergence import final_evaluation, grid
from benchmarks.emergence.grid import Budget, Condition, Run
from benchmarks.emergence.results_file import SHOWN, Results
from crate_jax import config, inference
from crate_jax.command_line import say
from crate_jax.convert import run_directory
from crate_jax.data.scenes import Scenes
from crate_jax.export.tables import NONE, Cell, Table, print_tables
from crate_jax.training import loop, metrics

RESULTS = "results.json"
# Along training, beside top1 and loss, by the names of `final_evaluation`.
_CURVES = (
    "cls_iou/mass/best",
    "cls_iou_other/mass/best",
    "cls_iou_own_minus_other/mass/best",
    "cls_iou_own_minus_other/mass/fixed",
    "cls_iou_own_minus_other/area/best",
    "cls_auroc_own_minus_other/best",
    "cls_ap_own_minus_other/best",
    "cls_pointing_own_minus_other/best",
    "coding_rate",
    "sparsity",
)
_JUDGED = 1000  # training scenes, never trained on, by which the sweep is judged


class Stopped(Exception):
    """Training was asked to stop, and has saved.

    Attributes:
        status: the exit status.
    """

    def __init__(self, status: int):
        self.status = status


def work(out: pathlib.Path, budget_name: str, only: Sequence[str]) -> int:
    """Does what is missing; returns the exit status.

    Args:
        out: holds results.json and the directories of runs.
        budget_name: of `grid.BUDGETS`.
        only: beginnings of names of runs; () for all.

    Raises:
        ValueError: no run is called so, or a run is there with another config.
    """
    results = Results.read(out / RESULTS, budget_name)
    budget = results.budget
    wanted = chosen(budget, only)
    keep_recipe(results)
    for run in wanted:
        check(run, results)
    left = [run for run in wanted if results.run(run) is None]
    clock = Clock(left, results)
    try:
        for run in left:
            _scenes_alone(out, results)
            _sweep(out, results, run.condition.swept, clock)
            clock.begin(run.name)
            results.add_run(run, _run(out, results, run))
            results.write(out / RESULTS)
            clock.done(run)
            jax.clear_caches()  # nothing of it comes again
    except Stopped as stopped:
        say("stopped; run the same command again to go on")
        return stopped.status
    say(f"{len(wanted)} runs done, {out / RESULTS}")
    return 0


def show(out: pathlib.Path, budget_name: str, only: Sequence[str]) -> int:
    """Prints which runs are done, begun and missing; returns the exit status 0."""
    results = Results.read(out / RESULTS, budget_name)
    wanted = chosen(results.budget, only)
    rows = [[Cell(run.name), *_state(out, results, run)] for run in wanted]
    left = [run for run in wanted if results.run(run) is None]
    seconds = remaining(left, results)
    hours = "unknown" if seconds is None else f"{seconds / 3600:.1f} h"
    columns = ["run", "state", "rate", "top-1", "own − other, layer by layer"]
    footer = [("left", Cell(f"{len(left)} of {len(wanted)}, {hours}"))]
    print_tables([Table(f"Grid, budget {budget_name}", "", columns, rows, footer)])
    return 0


def _state(out: pathlib.Path, results: Results, run: Run) -> list[Cell]:
    rate, row = results.rate(run.condition), results.run(run)
    texts = ["missing", NONE if rate is None else f"{rate:g}", NONE, NONE]
    if steps := run_directory.complete_steps(out / "runs" / run.name):
        texts[0] = f"step {steps[-1]}"
    if row is not None:
        final = row["final"]["learned"]
        layers = (f"{value:+.3f}" for value, *_ in final["cls_iou_own_minus_other/mass/best"])
        texts = ["done", texts[1], f"{final['top1'][0]:.3f}", " ".join(layers)]
    return [Cell(text) for text in texts]


def chosen(budget: Budget, only: Sequence[str]) -> list[Run]:
    """The runs whose names begin so, in the grid's order."""
    every = list(grid.runs(budget))
    for beginning in only:
        if not any(run.name.startswith(beginning) for run in every):
            raise ValueError(
                f"--only: expected the beginning of a run's name such as {every[0].name}, got "
                f"{beginning!r}; --list has all"
            )
    return [run for run in every if not only or run.name.startswith(tuple(only))]


def keep_recipe(results: Results) -> None:
    """Puts the recipe among the results; raises ValueError where another one is there."""
    recipe = grid.recipe(results.budget)
    known = results.content.setdefault("recipe", recipe)
    changed = config.differences(known["config"], recipe["config"])
    if changed:
        raise ValueError(
            "results: expected those of the quick start's recipe as it is now, got those of "
            f"another (there -> here): {'; '.join(changed)}; choose another --out, or go on with "
            "the recipe of then"
        )


def check(run: Run, results: Results) -> None:
    """Raises ValueError where the results hold a run of that name with another config."""
    row, rate = results.run(run), results.rate(run.condition)
    if row is None or rate is None:
        return
    expected = grid.digest(config.resolve(grid.run_config(run, results.budget, rate)))
    if row["config_hash"] != expected:
        raise ValueError(
            f"{run.name}: expected results of the config {expected}, got {row['config_hash']}: the "
            "recipe has changed since; choose another --out, or go on with the recipe of then"
        )


class Clock:
    """How long the rest will take, by how many scenes a second were trained so far."""

    def __init__(self, left: Sequence[Run], results: Results):
        self.left, self.results, self.total = list(left), results, len(left)
        self.started = time.monotonic()

    def begin(self, name: str) -> None:
        """Says what comes, and when all is done."""
        number = self.total - len(self.left) + 1
        seconds = remaining(self.left, self.results)
        eta = "unknown" if seconds is None else f"{seconds / 3600:.1f} h"
        say(f"run {number} of {self.total}  {name}  ETA {eta}")

    def done(self, run: Run) -> None:
        """One is done."""
        self.left.remove(run)


def remaining(left: Sequence[Run], results: Results) -> float | None:
    """Seconds that runs will take at the pace of those that are done; None before the first.

    A network of which none is done is taken for as slow as the slowest. Sweeps that are still to
    come count, evaluations do not.
    """
    budget = results.budget
    paces: dict[Condition, list[float]] = {}
    for run in grid.runs(budget):
        if row := results.run(run):
            paces.setdefault(run.condition.swept, []).append(row["images_per_second"])
    if not paces:
        return None
    typical = {condition: statistics.median(found) for condition, found in paces.items()}
    slowest = min(typical.values())
    seconds = sum(budget.images / typical.get(run.condition.swept, slowest) for run in left)
    for condition in {run.condition.swept for run in left}:
        if results.rate(condition) is None:
            trials = len(budget.factors) * budget.sweep_images
            seconds += trials / typical.get(condition, slowest)
    return seconds


def source(budget: Budget, condition: Condition, shown: str) -> Scenes:
    """The scenes of the last evaluation."""
    options = _scene_options(budget, condition)
    return Scenes("val", length=getattr(budget, shown), shown=shown, **options)


def _scene_options(budget: Budget, condition: Condition) -> dict[str, Any]:
    """How the grid's config composes scenes, so that those of the evaluation are alike."""
    c = grid.run_config(Run(condition, 0), budget, rate=1.0)
    options = config.plain(c.data.scenes)
    for name in ("train_length", "val_length", "val_shows"):
        options.pop(name)
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    return options | {"image_size": c.data.image_size}


def _patch(budget: Budget) -> int:
    return grid.network(grid.CRATE, budget).patch_size


def _scenes_alone(out: pathlib.Path, results: Results) -> None:
    """What the scenes' colours alone show, once."""
    if results.content["scenes"]:
        return
    budget = results.budget
    for shown in SHOWN:
        scenes = final_evaluation.held_out(source(budget, grid.CRATE, shown), _patch(budget))
        measured = final_evaluation.colour(scenes)
        results.content["scenes"][shown] = final_evaluation.one_map(
            "colour", measured, budget.samples
        )
        if shown == "learned":
            results.content["scenes"]["sizes"] = final_evaluation.sizes(scenes)
    results.write(out / RESULTS)


def _sweep(out: pathlib.Path, results: Results, condition: Condition, clock: Clock) -> None:
    """Tries the rates of a condition, where that was not done yet."""
    if results.rate(condition) is not None:
        return
    budget, trials = results.budget, []
    options = _scene_options(budget, condition) | {"seed": grid.JUDGED_SEED}
    scenes = final_evaluation.held_out(Scenes("train", length=_JUDGED, **options), _patch(budget))
    for rate in grid.rates(condition, budget):
        name = f"{condition.name}-rate{rate:g}"
        clock.begin(f"{name} (sweep)")
        workdir = out / "sweep" / name
        try:
            _train(grid.sweep_config(condition, budget, rate), workdir)
            trials.append({"rate": rate} | _judge(workdir, scenes))
        except FloatingPointError as error:
            say(f"rate {rate:g}: {error}")
            trials.append({"rate": rate, "top1": None, "loss": None})
        jax.clear_caches()
    results.add_sweep(condition, trials)
    results.write(out / RESULTS)


def _judge(workdir: pathlib.Path, scenes: final_evaluation.HeldOut) -> dict[str, float]:
    """Mean top1 and loss of a run on scenes."""
    network = inference.load(workdir)
    found = final_evaluation.Observed(final_evaluation.observer(network), scenes).classified()
    return {key: round(float(np.mean(values)), 4) for key, values in found.items()}


def _run(out: pathlib.Path, results: Results, run: Run) -> dict[str, Any]:
    """Trains a run, where that was not done yet, and measures it."""
    budget, rate = results.budget, results.rate(run.condition)
    c, workdir = grid.run_config(run, budget, rate), out / "runs" / run.name
    _train(c, workdir)
    say(f"measure   {run.name}")
    trained = inference.load(workdir)
    random = inference.random_weights(trained, run.seed)
    observe, final, groups = final_evaluation.observer(trained), {}, {}
    for shown in SHOWN:
        scenes = final_evaluation.held_out(source(budget, run.condition, shown), _patch(budget))
        pair = [
            final_evaluation.Observed(observe, scenes, network.params, budget.cut)
            for network in (trained, random)
        ]
        final[shown], groups[shown] = final_evaluation.evaluate(*pair, budget.samples)
        if shown == "learned":
            groups |= final_evaluation.by_size(pair[0])
    lines = metrics.read(workdir / "metrics.jsonl")
    paces = [line["time/images_per_second"] for line in lines if "train/loss" in line]
    return {
        "config_hash": grid.digest(config.resolve(c)),
        "rate": rate,
        "parameters": grid.parameters(trained.config),
        "images_per_second": round(statistics.median(paces), 1),
        "curves": curves(lines, c.batch_size),
        "final": final,
        "groups": groups,
    }


def _train(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to the end.

    Raises:
        Stopped: a signal came before.
    """
    if _finished(workdir, c):
        return
    status = loop.train(c, workdir)
    if status or not _finished(workdir, c):
        raise Stopped(status)


def _finished(workdir: pathlib.Path, c: ml_collections.ConfigDict) -> bool:
    """Whether the last step was saved, and evaluated where it was to be."""
    if c.steps not in run_directory.complete_steps(workdir):
        return False
    saved = json.loads((workdir / run_directory.CONFIG).read_text())
    if config.differences(saved, config.resolve(c)):
        return False  # for the training to refuse, with the difference
    lines = metrics.read(workdir / "metrics.jsonl")
    evaluated = any(line["step"] == c.steps and "val/top1" in line for line in lines)
    return evaluated or c.evals.validation == "never"


def curves(lines: Sequence[dict[str, Any]], batch_size: int) -> dict[str, list]:
    """Columns along training: scenes seen, top1, loss and, layer by layer, the rest."""
    rows = [line for line in lines if "val/top1" in line]
    columns: dict[str, list] = {"scenes": [row["step"] * batch_size for row in rows]}
    columns |= {name: [round(row[f"val/{name}"], 4) for row in rows] for name in ("top1", "loss")}
    for name in _CURVES:
        columns[name] = [list(_layers(row, f"val/{name}/layer")) for row in rows]
    return columns


def _layers(row: dict[str, Any], prefix: str) -> Iterator[float]:
    for layer in range(1, 100):
        if (name := f"{prefix}{layer:02d}") not in row:
            return
        yield round(row[name], 3)
