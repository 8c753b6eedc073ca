"""Scores as tables and charts, for the terminal and for the page."""

import math
from collections.abc import Mapping, Sequence

from crate_jax.export.charts import Line, line_chart
from crate_jax.export.tables import NONE, Cell, Table, cell, layer_tables, rule_names
from crate_jax.score.measurements import Measurements
from crate_jax.score.measuring import Protocol
from crate_jax.score.tasks import Task
from crate_jax.segmentation.emergence import Estimate

Estimates = Mapping[str, Estimate]
_APS = [(kind, ap) for kind in ("box", "mask") for ap in ("AP50", "AP75", "AP")]
_OVER_LAYERS = (
    ("coding_rate", "Coding rate", "Nats an image; lower is more compressed."),
    ("sparsity", "Sparsity", "Fraction of zeros after the layer."),
)


def mask_prefix(layer: int, tau: float, weights: str = "") -> str:
    """maskcut/layerNN/tauT of a layer's index from 0; of `weights` "_random" maskcut_random/."""
    return f"maskcut{weights}/layer{layer + 1:02d}/tau{tau:g}"


def score_tables(
    main: Estimates,
    protocol: Protocol,
    tasks: Sequence[Task],
    trained: Measurements,
    noisy: Mapping[str, Estimates],
    steps: Mapping[str, Estimates],
) -> list[Table]:
    """All tables of a network's scores: layers, masks, tasks, and series over noise and steps."""
    names = headline(main, protocol, tasks)
    tables = layer_tables(main, protocol.keep)
    if protocol.mask_layers:
        tables.append(mask_table(main, protocol, trained))
    for task in tasks:
        tables += task.tables(main)
    if noisy:
        tables.append(
            series_table(
                "Robustness to noise, per cent",
                "Gaussian noise, standard deviation of 255, on a random part of the input's "
                "pixels.",
                "noise",
                {"without noise": main, **noisy},
                names,
            )
        )
    if steps:
        tables.append(
            series_table(
                "Over the run, per cent",
                "Every checkpoint on the same images; layers as chosen for the last.",
                "step",
                steps,
                names,
            )
        )
    return tables


def mask_table(estimates: Estimates, protocol: Protocol, measured: Measurements) -> Table:
    """Box and mask AP by layer and tau, and with random weights."""
    rows = []
    for (layer, tau), without in measured.without_mask().items():
        for weights, said in (("", ""), ("_random", ", random weights")):
            names = [f"{mask_prefix(layer, tau, weights)}/{kind}/{ap}" for kind, ap in _APS]
            if names[0] not in estimates:
                continue
            cells = [cell(estimates[n], percent=True, control=bool(weights)) for n in names]
            label = Cell(f"{layer + 1}, {tau:g}{said}")
            rows.append([label, *cells, Cell(NONE if weights else str(without))])
    return Table(
        "MaskCut: class-agnostic COCO AP, per cent",
        f"N = {protocol.max_masks}, every mask of score 1; 95 % bootstrap intervals over images.",
        ["layer, tau", *(f"{kind} {ap}" for kind, ap in _APS), "without a mask"],
        rows,
    )


def series_table(
    title: str, note: str, heading: str, series: Mapping[str, Estimates], names: Mapping[str, str]
) -> Table:
    """A few scores under several conditions: noise, or steps of a run."""
    rows = [
        [Cell(label), *[cell(found[name], percent=True) for name in names]]
        for label, found in series.items()
    ]
    return Table(title, note, [heading, *names.values()], rows)


def headline(
    estimates: Estimates, protocol: Protocol, tasks: Sequence[Task] = ()
) -> dict[str, str]:
    """The scores by which conditions are compared, name to heading.

    For each rule the best head at the layer that scores highest; AP at the last layer measured and
    at MaskCut's published tau, or the first that was asked for.
    """
    names = {}
    for rule in ("mass", "area"):
        stem = f"cls_iou/{rule}/best/layer"
        if found := [name for name in estimates if name.startswith(stem)]:
            best = max(found, key=lambda name: estimates[name].value)
            names[best] = f"IoU, {rule}, layer {int(best.removeprefix(stem))}"
    if protocol.mask_layers:
        tau = 0.15 if 0.15 in protocol.taus else protocol.taus[0]
        prefix = mask_prefix(protocol.mask_layers[-1], tau)
        names |= {f"{prefix}/{kind}/AP": f"{kind} AP" for kind in ("box", "mask")}
        names |= {f"{prefix}/{kind}/AP50": f"{kind} AP50" for kind in ("box", "mask")}
    for task in tasks:
        names |= {name: title for name, title in task.headline.items() if name in estimates}
    return names


def charts(
    estimates: Estimates,
    protocol: Protocol,
    tasks: Sequence[Task],
    steps: Mapping[str, Estimates],
) -> list[dict]:
    """IoU and AP against the layer, AP against tau, and the headline scores against steps."""
    drawn = [*_attention_charts(estimates, protocol), *_mask_charts(estimates, protocol)]
    if len(steps) > 1:
        for name, heading in headline(estimates, protocol, tasks).items():
            x = [int(step) for step in steps]
            line = _line("trained", x, [found.get(name) for found in steps.values()])
            drawn.append(_chart(f"{heading} over steps", "A run's checkpoints.", [line], "step"))
    return [chart for chart in drawn if chart["svg"]]


def _attention_charts(estimates: Estimates, protocol: Protocol) -> list[dict]:
    layers = [layer + 1 for layer in protocol.attention_layers]
    if not layers:
        return []

    def line(label: str, prefix: str, **style) -> Line:
        return _line(
            label, layers, [estimates.get(f"{prefix}/layer{n:02d}") for n in layers], **style
        )

    drawn = []
    for rule, name in rule_names(protocol.keep).items():
        lines = [
            line("own object", f"cls_iou/{rule}/best"),
            line("another's", f"cls_iou_other/{rule}/best", tone=0.3),
            line("random", f"cls_iou_random/{rule}/best", tone="muted", dashed=True),
        ]
        for label, key in (("all ones", "cls_iou_all_ones"), ("centre box", "cls_iou_centre_box")):
            if key in estimates:
                level = estimates[key].value
                lines.append(Line(label, [layers[0], layers[-1]], [level, level], 0.0, dashed=True))
        drawn.append(_chart(f"IoU by layer, {name}", "Best head.", lines, "layer"))
    for kind, title, note in _OVER_LAYERS:
        drawn.append(_chart(title, note, [line("mean", kind)], "layer"))
    return drawn


def _mask_charts(estimates: Estimates, protocol: Protocol) -> list[dict]:
    layers, taus, drawn = protocol.mask_layers, protocol.taus, []

    def lines(x: Sequence[float], cuts: Sequence[tuple[int, float]]) -> list[Line]:
        found = {
            kind: [estimates.get(f"{mask_prefix(*cut)}/{kind}/AP") for cut in cuts]
            for kind in ("box", "mask")
        }
        return [
            _line("box AP", x, found["box"], tone="accent"),
            _line("mask AP", x, found["mask"], tone=0.3),
        ]

    if len(layers) > 1:
        by_layer = lines([layer + 1 for layer in layers], [(layer, taus[0]) for layer in layers])
        drawn.append(_chart("MaskCut AP by layer", f"tau {taus[0]:g}.", by_layer, "layer"))
    if layers and len(taus) > 1:
        by_tau = lines(taus, [(layers[-1], tau) for tau in taus])
        drawn.append(_chart("MaskCut AP by tau", f"Layer {layers[-1] + 1}.", by_tau, "tau"))
    return drawn


def _line(label: str, x: Sequence[float], found: Sequence[Estimate | None], **style) -> Line:
    points = [
        (at, estimate)
        for at, estimate in zip(x, found, strict=True)
        if estimate is not None and math.isfinite(estimate.value)
    ]
    if points and all(math.isfinite(estimate.low) for _, estimate in points):
        style |= {"low": [e.low for _, e in points], "high": [e.high for _, e in points]}
    values = [estimate.value for _, estimate in points]
    return Line(label, [at for at, _ in points], values, markers=True, **style)


def _chart(title: str, note: str, lines: list[Line], x_label: str) -> dict:
    svg = line_chart(lines, title=title, x_label=x_label, whole_x=x_label == "layer")
    return {"title": title, "note": note, "svg": svg}
