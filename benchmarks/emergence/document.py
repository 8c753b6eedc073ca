"""What results.json says, as the generated parts of docs/emergence.md."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks import pages
from benchmarks.emergence import differences, drawings, grid, runner
from benchmarks.emergence.differences import HEADLINE
from benchmarks.emergence.grid import Condition
from benchmarks.emergence.results_file import SHOWN, Results
from crate_jax.command_line import say
from crate_jax.files import write_atomically
from crate_jax.segmentation import emergence
from crate_jax.segmentation.emergence import Estimate

PAGE = pages.DOCS / "emergence.md"
_NAMES = {
    "mass": "IoU, mass rule",
    "area": "IoU, area rule",
    "auroc": "AUROC",
    "ap": "average precision",
    "pointing": "pointing",
}
# Of what is compared, CRATE and ViT under other conditions: where the claim may not hold.
_CONDITIONS = grid.COMPARISONS[3:9]
_OPERATORS = (*grid.COMPARISONS[1:3], *grid.COMPARISONS[9:])


def render(path: pathlib.Path, out: pathlib.Path | None) -> int:
    """Writes docs/emergence.md and its charts again; returns the exit status 0.

    Args:
        path: a results.json; its charts are put beside it.
        out: the directory of the runs, for the README's picture; None leaves that as it is.
    """
    results = Results.read(path)
    if out is not None:
        say(f"wrote {drawings.write_side_by_side(out, results, PAGE.parent)}")
    for name, svg in drawings.drawn(results).items():
        write_atomically(chart_path(path, name), svg)
    write_atomically(PAGE, page_with(PAGE.read_text(encoding="utf-8"), results, path))
    say(f"wrote {PAGE}")
    return 0


def chart_path(path: pathlib.Path, name: str) -> pathlib.Path:
    """A chart's place beside the results."""
    return path.with_name(f"{path.stem}_{name}.svg")


def page_with(page: str, results: Results, path: pathlib.Path) -> str:
    """The page with the part of the results' budget written anew.

    Raises:
        ValueError: the page has no part of that budget.
    """
    budget = results.content["budget"]
    if f"<!-- results of {budget} -->" not in page:
        raise ValueError(
            f"{path}: expected results of a budget that docs/emergence.md shows, got {budget}; "
            "render those of cpu or gpu"
        )

    parts = {f"results of {budget}": text(results, path.stem)}
    if budget == "cpu":
        recipe = results.content.get("recipe") or grid.recipe(results.budget)
        parts["set-up"] = pages.joined([set_up(recipe)])
    return pages.written(page, parts)


def set_up(recipe: Mapping) -> str:
    """The sentences on the recipe, from `grid.recipe`."""
    c, parameters = recipe["config"], recipe["parameters"]
    model, optimizer = c["model"], c["optimizer"]
    crate, vit = parameters[grid.CRATE.name], parameters[grid.VIT.name]
    narrow = Condition("vit", matching="parameters").name
    return (
        f"A run: {c['steps'] * c['batch_size']:,} scenes of {c['data']['image_size']} px, in "
        f"batches of {c['batch_size']}; patches of {model['patch_size']} px, width {model['dim']}, "
        f"depth {model['depth']}, {model['heads']} heads in every network, since the best of heads "
        f"grows with their number. Muon for the matrices of the layers, AdamW at "
        f"{optimizer['learning_rate']:g} for the rest, weight decay {optimizer['weight_decay']:g}. "
        f"Parameters: CRATE {crate:,}; ViT {vit:,}, "
        f"{vit / crate:.1f} times as many; ViT of width {recipe['widths'][narrow]} "
        f"{parameters[narrow]:,}."
    )


def text(results: Results, stem: str = "emergence") -> str:
    """The generated part: every number of it is in results.json or follows from it.

    Args:
        results: of the runs that are done.
        stem: of the charts' names.
    """
    parts = [_missing(results)]
    if results.content["runs"]:
        parts = [*_answer(results), *_charts(results, stem), *_tables(results), *parts]
    return pages.joined(parts)


# ---- The answer ----------------------------------------------------------------------------------


def _compared(
    results: Results, ours: Condition, reference: Condition, shown: str, measure: str
) -> Estimate | None:
    """The difference of two conditions' headlines; None where one has fewer than two seeds."""
    terms = [differences.headline(results, one, shown, measure) for one in (ours, reference)]
    if any(values is None for values in terms):
        return None
    return differences.interval(terms, (1, -1), samples=results.budget.samples)


def _answer(results: Results) -> list[str]:
    """What is decided, and where it does not hold."""
    difference = _compared(results, grid.CRATE, grid.VIT, "learned", HEADLINE)
    if difference is None:
        return ["The main comparison needs two seeds of CRATE and of ViT."]
    pair = (grid.CRATE, grid.VIT)
    seeds = [len(results.of_condition(one)) for one in pair]
    verdict = differences.verdict(difference)
    early = (
        "" if min(seeds) >= results.budget.seeds else f" So far, with {min(seeds)} seeds of each."
    )
    heads = "; ".join(f"{one.title} {_spread(_headline(results, one))}" for one in pair)
    lines = [
        f"**The claim {verdict}** on these scenes: D = {_signed(difference)} (own minus other: "
        f"{heads}; mean and standard deviation over seeds).{early}"
    ]
    places = list(_places(results))
    for found, words in ((False, "D's interval does not lie above 0 with"), (True, "It does with")):
        chosen = [
            f"{name} ({_signed(value)})" for name, value in places if (value.low > 0) is found
        ]
        if chosen:
            lines.append(f"{words}: {'; '.join(chosen)}.")
    operators = (
        (ours.title, _compared(results, ours, reference, "learned", HEADLINE))
        for _, ours, reference in _OPERATORS
    )
    against = [f"{title} {_signed(value)}" for title, value in operators if value is not None]
    if against:
        lines.append(f"Other operators, less the ViT: {'; '.join(against)}.")
    return [" ".join(lines)]


def _places(results: Results) -> Iterable[tuple[str, Estimate]]:
    """The comparisons that say where the claim holds, as far as their runs are done."""
    pair = (grid.CRATE, grid.VIT)
    for measure in emergence.MEASURES[1:]:
        yield _NAMES[measure], _compared(results, *pair, "learned", measure)
    yield "objects never learned", _compared(results, *pair, "held_out", HEADLINE)
    rows = [results.of_condition(one) for one in pair]
    at = differences.equal_accuracy(*rows)
    yield f"equal accuracy, top-1 {at.top1:.3f}", at.difference
    for title, *pair in _CONDITIONS:
        if (value := _compared(results, *pair, "learned", HEADLINE)) is not None:
            yield title, value


# ---- Charts --------------------------------------------------------------------------------------


def _charts(results: Results, stem: str) -> list[str]:
    pictures = [f"![{title}](results/{stem}_{name}.svg)" for name, title in drawings.TITLES.items()]
    if results.content["budget"] == "cpu" and (PAGE.parent / drawings.PICTURE).is_file():
        title = "CRATE and ViT on the same scenes: the best head of each network's best layer"
        pictures.insert(0, f"![{title}]({drawings.PICTURE})")
    return pictures


# ---- Tables --------------------------------------------------------------------------------------


def _tables(results: Results) -> list[str]:
    done = [c for c in _conditions(results) if results.of_condition(c)]
    return [
        "### Networks",
        "Mean and standard deviation over seeds. Own, other and random are IoU by the mass rule "
        "of the best head, in the layer that is best over all scenes; own minus other is the "
        "headline.",
        pages.table(
            [
                *("network", "seeds", "parameters", "rate", "top-1", "layer", "own", "other"),
                *("random", "own − other", "objects never learned"),
            ],
            (_network(results, condition) for condition in done),
        ),
        _alone(results),
        *_differences(results),
        "### Layers",
        "Own minus other, mass rule, best head: mean and standard deviation over seeds.",
        pages.table(
            ["network", *(f"layer {number + 1}" for number in range(_depth(results)))],
            (_by_layer(results, condition) for condition in done),
        ),
        "### Measures",
        "Each in the layer of the first table: own / another scene's object / random weights, "
        "means over seeds.",
        pages.table(
            ["measure", *(condition.title for condition in _main(done))],
            (_measure(results, name, title, _main(done)) for name, title in _MEASURED.items()),
        ),
        "### Pooling",
        "Own minus other, mean and standard deviation over seeds: of [CLS] attention in its best "
        "layer, and of the cosine of each patch with the pooled vector.",
        pages.table(
            ["network", "map", *(_NAMES[m] for m in emergence.MEASURES[1:])],
            (row for c in done if _plain(c) for row in _pooling(results, c)),
            2,
        ),
        "### Rates",
        "Loss (and top-1) on training scenes never trained on, after the sweep's short runs.",
        pages.table(["network", "optimizer", "taken", "tried"], _sweeps(results), 4),
    ]


_MEASURED = {
    "cls_iou{}/mass/best": "IoU, mass rule, best head",
    "cls_iou{}/mass/mean": "the same, mean of heads",
    "cls_iou{}/mass/fixed": "the same, one fixed head",
    "cls_iou{}/area/best": "IoU, area rule, best head",
    "cls_auroc{}/best": "AUROC, best head",
    "cls_ap{}/best": "average precision, best head",
    "cls_pointing{}/best": "pointing, best head",
    "maskcut_iou{}": "MaskCut, best IoU",
    "maskcut_mask_ap{}": "MaskCut, mask AP",
    "corloc{}": "TokenCut, CorLoc",
    "coding_rate{}": "coding rate, nats",
    "sparsity{}": "sparsity",
}


def _conditions(results: Results) -> list[Condition]:
    return [*results.budget.main, *results.budget.further]


def _main(conditions: Sequence[Condition]) -> list[Condition]:
    return [condition for condition in conditions if condition in grid.MAIN]


def _plain(condition: Condition) -> bool:
    """Whether it is of the question of pooling."""
    alike = Condition(condition.network, pool=condition.pool)
    return condition == alike and condition.network in ("crate", "vit")


def _depth(results: Results) -> int:
    return len(results.content["runs"][0]["groups"]["learned"][HEADLINE])


def _headline(results: Results, condition: Condition, shown: str = "learned") -> list[float]:
    """Of each seed."""
    layers = differences.layers_of(results.of_condition(condition), shown)
    return differences.best_layer(layers).mean(axis=1).tolist()


def _finals(rows: Sequence[Mapping], name: str, layer: int | None = None) -> list[float]:
    """A number of each seed, in a layer where it has layers; none where it was not measured."""
    found = [row["final"]["learned"][name] for row in rows if name in row["final"]["learned"]]
    values = [value if layer is None else value[layer] for value in found]
    return [value[0] if isinstance(value, list) else value for value in values]


def _network(results: Results, condition: Condition) -> list[str]:
    rows = results.of_condition(condition)
    layer = differences.layer_of_all(rows)
    ious = [_finals(rows, f"cls_iou{kind}/mass/best", layer) for kind in ("", "_other", "_random")]
    return [
        condition.title,
        str(len(rows)),
        f"{rows[0]['parameters']:,}",
        f"{rows[0]['rate']:g}",
        _spread(_finals(rows, "top1")),
        str(layer + 1),
        *map(_spread, ious),
        *(_spread(_headline(results, condition, shown), sign="+") for shown in SHOWN),
    ]


def _differences(results: Results) -> list[str]:
    """The table of all comparisons whose runs are done; nothing before the first."""
    rows = list(filter(None, (_difference(results, *row) for row in grid.COMPARISONS)))
    if not rows:
        return []
    return [
        "### Differences",
        "Of own minus other, with 95 % intervals over seeds and scenes; the first row is the main "
        "comparison. The last column is the mass rule's on objects never learned.",
        pages.table(
            ["what", "minus", *(_NAMES[m] for m in emergence.MEASURES), "never learned"], rows, 2
        ),
    ]


def _difference(
    results: Results, title: str, ours: Condition, reference: Condition
) -> list[str] | None:
    if _compared(results, ours, reference, "learned", HEADLINE) is None:
        return None
    columns = [("learned", measure) for measure in emergence.MEASURES] + [("held_out", HEADLINE)]
    found = (_compared(results, ours, reference, *column) for column in columns)
    return [ours.title, reference.title, *map(_signed, found)]


def _by_layer(results: Results, condition: Condition) -> list[str]:
    layers = differences.layers_of(results.of_condition(condition), "learned").mean(axis=2)
    return [condition.title, *(_spread(values.tolist(), sign="+") for values in layers.T)]


def _measure(results: Results, name: str, title: str, conditions: Sequence[Condition]) -> list[str]:
    cells = []
    for condition in conditions:
        rows = results.of_condition(condition)
        kinds = (
            _finals(rows, name.format(k), differences.layer_of_all(rows))
            for k in ("", "_other", "_random")
        )
        cells.append(" / ".join(f"{np.mean(values):.3f}" for values in kinds if values))
    return [title, *cells]


def _pooling(results: Results, condition: Condition) -> Iterable[list[str]]:
    rows = results.of_condition(condition)
    stems = (
        "iou_own_minus_other/area",
        *(f"{m}_own_minus_other" for m in ("auroc", "ap", "pointing")),
    )
    attended = [_finals(rows, f"cls_{stem}/best", differences.layer_of_all(rows)) for stem in stems]
    similar = [_finals(rows, f"similarity_{stem}") for stem in stems]
    for title, values in (
        (f"[CLS], layer {differences.layer_of_all(rows) + 1}", attended),
        ("pooled vector", similar),
    ):
        yield [condition.title, title, *(_spread(value, sign="+") for value in values)]


def _alone(results: Results) -> str:
    """What no network is needed for."""
    final = results.content["runs"][0]["final"]["learned"]
    colour = results.content["scenes"]["learned"]
    return (
        f"Without a network: the whole image {final['cls_iou_all_ones'][0]:.3f}, a centred box "
        f"{final['cls_iou_centre_box'][0]:.3f} (own minus other is 0 for both), the colour "
        f"distance from the border {colour['colour_iou/mass'][0]:.3f}, on another scene's object "
        f"{colour['colour_iou_other/mass'][0]:.3f}."
    )


def _sweeps(results: Results) -> Iterable[list[str]]:
    for sweep in results.content["sweeps"]:
        condition = Condition(sweep["network"], sweep["matching"], optimizer=sweep["optimizer"])
        tried = "; ".join(
            f"{t['rate']:g}: not finite"
            if t["loss"] is None
            else f"{t['rate']:g}: {t['loss']:.3f} ({t['top1']:.3f})"
            for t in sweep["trials"]
        )
        optimizer = grid.OPTIMIZERS[sweep["optimizer"]][0]
        yield [condition.title, optimizer, f"{sweep['rate']:g}", tried]


def _missing(results: Results) -> str:
    """What is not run, with the command and the hours."""
    missing = [run for run in grid.runs(results.budget) if results.run(run) is None]
    total = len(list(grid.runs(results.budget)))
    if not missing:
        return f"All {total} runs are done."
    name = results.content["budget"]
    command = "python -m benchmarks.emergence --out=DIR"
    command += "" if name == "cpu" else f" --budget={name}"
    seconds = runner.remaining(missing, results)
    if seconds is None:
        return (
            f"Not run yet: `{command}`, {total} runs. How long they take is not known before the "
            "first is done."
        )
    seeds: dict[Condition, list[str]] = {}
    for run in missing:
        seeds.setdefault(run.condition, []).append(str(run.seed))
    listed = "; ".join(f"{one.title} (seed {', '.join(some)})" for one, some in seeds.items())
    return (
        f"Not run yet: {len(missing)} of {total} runs, {seconds / 3600:.1f} hours of training at "
        f"the pace of those that are done (`{command}`): {listed}."
    )


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds; of one seed its value."""
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}" if values else "–"
    return f"{np.mean(values):{sign}.3f} ± {np.std(values, ddof=1):.3f}"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
