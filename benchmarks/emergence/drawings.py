"""The charts of docs/emergence.md, and the README's picture."""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from benchmarks.emergence import differences, final_evaluation, grid, runner
from benchmarks.emergence.differences import HEADLINE
from benchmarks.emergence.grid import Condition
from benchmarks.emergence.results_file import Results
from crate_jax import inference
from crate_jax.export import charts, overlays
from crate_jax.files import write_atomically

TITLES = {
    "layers": "Own minus other by layer",
    "training": "Own minus other along training, in the layer that is best at the end",
    "accuracy": "Own minus other against top-1 along training",
}
_LABELS = {"layers": "layer", "training": "training scenes", "accuracy": "top-1"}
_TONES = {"crate": "accent", "vit": "muted", "crate-mlp": 0.0, "crate-mhsa": 0.5}
_SHOWN = 10  # scenes of the picture
PICTURE = "emergence.png"


def drawn(results: Results) -> dict[str, str]:
    """The charts as SVG files, by name; those of the main networks that are done.

    Bands are the standard deviation over seeds.
    """
    return {
        name: charts.standalone(
            charts.line_chart(
                list(_lines(results, name)),
                title=title,
                x_label=_LABELS[name],
                whole_x=name == "layers",
                size=(6.4, 3.4),
            )
        )
        for name, title in TITLES.items()
    }


def _lines(results: Results, name: str) -> Iterator[charts.Line]:
    for condition in grid.MAIN:
        rows = results.of_condition(condition)
        if not rows:
            continue
        x, y = _points(rows, name)  # y f64[seeds, points]
        spread = y.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(y.shape[1])
        mean = y.mean(axis=0)
        yield charts.Line(
            condition.title,
            x.tolist(),
            mean.tolist(),
            _TONES[condition.network],
            (mean - spread).tolist(),
            (mean + spread).tolist(),
            dashed=condition.network not in ("crate", "vit"),
            markers=True,
        )


def _points(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "layers":
        y = differences.layers_of(rows, "learned").mean(axis=2)
        return np.arange(1, y.shape[1] + 1), y
    curves = np.array([row["curves"][differences.CURVE] for row in rows])
    layer = curves[:, -1].mean(axis=0).argmax()
    column = {"training": "scenes", "accuracy": "top1"}[name]
    x = np.mean([row["curves"][column] for row in rows], axis=0)
    return x, curves[..., layer]


def write_side_by_side(out: pathlib.Path, results: Results, folder: pathlib.Path) -> pathlib.Path:
    """The README's picture from the first runs of CRATE and ViT; returns where it is.

    The first held-out scenes, not picked, and of both networks the [CLS] map of the layer that is
    best over all scenes, in the head that fits each object best.

    Args:
        out: the directory of the grid.
        results: of both networks at least two seeds.
        folder: where the picture is written.

    Raises:
        ValueError: a run's checkpoint is not there.
    """
    pictures: dict[str, list[np.ndarray]] = {}
    for condition in (grid.CRATE, grid.VIT):
        network = inference.load(out / "runs" / grid.Run(condition, 0).name)
        scenes = final_evaluation.held_out(
            runner.source(results.budget, condition, "learned"), network.config.patch_size
        )
        pictures.setdefault("held-out scenes", list(scenes.images[:_SHOWN]))
        observed = final_evaluation.Observed(final_evaluation.observer(network), scenes)
        layer = differences.layer_of_all(results.of_condition(condition))
        pictures[_caption(results, condition, layer)] = _attended(observed, layer)
    return write_atomically(folder / PICTURE, _sheet(pictures))


def _caption(results: Results, condition: Condition, layer: int) -> str:
    values = differences.headline(results, condition, "learned", HEADLINE)
    if values is None:
        raise ValueError(f"picture: expected two seeds of {condition.title}, got fewer; run more")
    found = differences.interval([values], [1], samples=results.budget.samples)
    return (
        f"{condition.title}, layer {layer + 1}\nown − other\n{found.value:.3f}\n"
        f"[{found.low:.3f}, {found.high:.3f}]"
    )


def _attended(observed: final_evaluation.Observed, layer: int) -> list[np.ndarray]:
    """The best head's map over each of the first scenes."""
    fits = np.array(observed.measured().own)[:_SHOWN, 0, layer, :-1]
    maps = observed.arrays["maps"][np.arange(_SHOWN), layer, fits.argmax(axis=1)]
    return [
        overlays.heat_overlay(image, heat.reshape(observed.scenes.grid))
        for image, heat in zip(observed.scenes.images, maps, strict=False)
    ]


def _sheet(rows: dict[str, list[np.ndarray]]) -> bytes:
    """Rows of pictures with their names at the left, as a PNG."""
    figure = Figure(figsize=(1.6 + 0.95 * _SHOWN, 0.98 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), _SHOWN)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for place, picture in zip(row, pictures, strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
