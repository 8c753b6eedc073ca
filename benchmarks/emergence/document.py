"""The generated parts of docs/emergence.md, and of the pages beside it, from results.json."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks import pages
from benchmarks.emergence import differences, drawings, grid, runner
from benchmarks.emergence.answer import NAMES, Answer, compared, headlines, signed, spread
from benchmarks.emergence.differences import HEADLINE
from benchmarks.emergence.grid import Condition
from benchmarks.emergence.results_file import SHOWN, SIZES, Results
from crate_jax.command_line import say
from crate_jax.files import write_atomically
from crate_jax.segmentation import emergence

PAGE = pages.DOCS / "emergence.md"


def render(path: pathlib.Path, out: pathlib.Path | None) -> int:
    """Writes the pages and the charts again; returns the exit status 0.

    Args:
        path: a results.json; its charts are put beside it.
        out: the directory of the runs, for the README's picture; None leaves that as it is.
    """
    results = Results.read(path)
    if out is not None:
        say(f"wrote {drawings.write_side_by_side(out, results, pages.DOCS)}")
    for name, svg in drawings.drawn(results).items():
        write_atomically(chart_path(path, name), svg)
    for page, content in written(results, path).items():
        write_atomically(page, content)
        say(f"wrote {page}")
    return 0


def chart_path(path: pathlib.Path, name: str) -> pathlib.Path:
    """A chart's place beside the results."""
    return path.with_name(f"{path.stem}_{name}.svg")


def written(results: Results, path: pathlib.Path) -> dict[pathlib.Path, str]:
    """The pages with the parts of the results' budget written anew.

    Raises:
        ValueError: no page has a part of that budget.
    """
    budget = results.content["budget"]
    if f"<!-- results of {budget} -->" not in PAGE.read_text(encoding="utf-8"):
        raise ValueError(
            f"{path}: expected results of a budget that docs/emergence.md shows, got {budget}; "
            "render those of cpu or gpu"
        )
    answer = Answer.of(results)
    parts = {f"results of {budget}": text(results, answer, path.stem)}
    found = [PAGE]
    if budget == "cpu":
        recipe = results.content.get("recipe") or grid.recipe(results.budget)
        parts["set-up"] = pages.joined([set_up(recipe)])
        parts["emergence"] = pages.joined([answer.brief])
        found += [pages.DOCS.parent / "README.md", pages.DOCS / "reproduce_the_paper.md"]
    return {page: pages.written(page.read_text(encoding="utf-8"), parts) for page in found}


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


def text(results: Results, answer: Answer, stem: str) -> str:
    """The generated part: every number of it is in results.json or follows from it.

    Args:
        results: of the runs that are done.
        answer: theirs.
        stem: of the charts' names.
    """
    parts = [_missing(results)]
    if results.content["runs"]:
        parts = [str(answer), *_charts(results, stem), *_tables(results), *parts]
    return pages.joined(parts)


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
        *_sizes(results),
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
            ["network", "map", *(NAMES[m] for m in emergence.MEASURES[1:])],
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
        spread(_finals(rows, "top1")),
        str(layer + 1),
        *map(spread, ious),
        *(spread(headlines(results, condition, shown), sign="+") for shown in SHOWN),
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
            ["what", "minus", *(NAMES[m] for m in emergence.MEASURES), "never learned"], rows, 2
        ),
    ]


def _sizes(results: Results) -> list[str]:
    """The headline and the comparisons by size of the object; nothing before the first."""
    main = (c for c in _main(_conditions(results)) if len(results.of_condition(c)) > 1)
    rows = [
        [c.title, "", *(spread(headlines(results, c, size), sign="+") for size in SIZES)]
        for c in main
    ]
    for _, ours, reference in grid.COMPARISONS:
        found = [compared(results, ours, reference, size, HEADLINE) for size in SIZES]
        if None not in found:
            rows.append([ours.title, reference.title, *map(signed, found)])
    if not rows:
        return []
    ranges = results.content["scenes"]["sizes"]
    named = ", ".join(f"{size} {ranges[size][0]:.3f} to {ranges[size][1]:.3f}" for size in SIZES)
    return [
        "### Sizes of objects",
        "Not among what was written down before the runs. Own minus other, mass rule, of the "
        "scenes' thirds by the object's share of the image, in each the layer that is best there; "
        f"the other object is of the same third. {named[0].upper()}{named[1:]}.",
        pages.table(["what", "minus", *SIZES], rows, 2),
    ]


def _difference(
    results: Results, title: str, ours: Condition, reference: Condition
) -> list[str] | None:
    if compared(results, ours, reference, "learned", HEADLINE) is None:
        return None
    columns = [("learned", measure) for measure in emergence.MEASURES] + [("held_out", HEADLINE)]
    found = (compared(results, ours, reference, *column) for column in columns)
    return [ours.title, reference.title, *map(signed, found)]


def _by_layer(results: Results, condition: Condition) -> list[str]:
    layers = differences.layers_of(results.of_condition(condition), "learned").mean(axis=2)
    return [condition.title, *(spread(values.tolist(), sign="+") for values in layers.T)]


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
        yield [condition.title, title, *(spread(value, sign="+") for value in values)]


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
