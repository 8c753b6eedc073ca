"""`score --task=artifacts`: norms of patch tokens by layer, outliers, attention beside patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from crate_jax import inference
from crate_jax.export.tables import Cell, Table, cell
from crate_jax.score.tasks import Columns, Example, OfWeights, Row, check_finite
from crate_jax.segmentation import artifacts, emergence
from crate_jax.segmentation.emergence import Estimate, layer_name

_QUANTILES = {q: f"q{100 * q:g}" for q in artifacts.QUANTILES}


class Artifacts(OfWeights):
    """Norms of the patch tokens after each layer, before any final norm, and where [CLS] looks.

    Args:
        network: from `inference.load`.
        layers: indices.
        size: (height, width) of the network's input.
        batch_size: images at once.
        rule: which norms are outliers, as `artifacts.cutoff` has it.
        **draws: see `Task`.
    """

    name = "artifacts"

    def __init__(
        self,
        network: inference.Network,
        layers: tuple[int, ...],
        size: tuple[int, int],
        batch_size: int,
        *,
        rule: str = artifacts.DEFAULT_RULE,
        **draws: int,
    ):
        super().__init__(**draws)
        self._edges = artifacts.edges(rule)
        self.layers, self.rule = layers, rule
        self.registers = network.config.registers
        run = inference.norms_and_mass(network, layers)
        self._run = inference.Batches(network, run, batch_size, size)
        self.programs = (self._run,)
        self.settings = {"outliers": rule, "layers": list(layers), "registers": self.registers}

    def __call__(self, examples: Sequence[Example], params: Any) -> list[Row]:
        """artifacts/norms, counts [layers, bins], and artifacts/mass f32[layers, 2]."""
        pixels = np.zeros(self._run.shape, np.uint8)
        for row, example in enumerate(examples):
            pixels[row] = example.pixels
        norms, mass = jax.device_get(self._run(pixels, params))
        for row, example in enumerate(examples):
            check_finite(example, norms[row], mass[row])
        return [
            {
                "artifacts/norms": artifacts.histogram(norms[row], self._edges),
                "artifacts/mass": mass[row],
            }
            for row in range(len(examples))
        ]

    def scores(self, stem: str, columns: Columns) -> dict[str, Estimate]:
        """artifacts/NAME/layerNN and artifacts_random/NAME/layerNN.

        NAME: outliers, cutoff, qQ (quantiles), cls_mass, register_mass. The share of outliers and
        the masses are means over images; the cut-off and the quantiles are of all tokens together,
        without interval, and known to the width of a bin, 2.2 %, by which norms are kept; the share
        is exact for the cut-off that stands beside it. A cut-off that does not exist (no valley) is
        NaN, and the share then 0.
        """
        kept = columns["artifacts/norms"]
        pooled_counts = np.stack(kept).sum(axis=0, dtype=np.int64)
        mass = np.array(columns["artifacts/mass"])
        rows: dict[str, np.ndarray] = {}
        found: dict[str, Estimate] = {}
        for place, layer in enumerate(self.layers):
            end, own = layer_name(layer), pooled_counts[place]
            cut = artifacts.cutoff(own, self._edges, self.rule)
            rows[f"{stem}/outliers/{end}"] = np.array(
                [artifacts.outliers(counts[place], self._edges, cut) for counts in kept]
            )
            rows[f"{stem}/cls_mass/{end}"] = mass[:, place, 0]
            if self.registers:
                rows[f"{stem}/register_mass/{end}"] = mass[:, place, 1]
            pooled = {"cutoff": cut if np.isfinite(cut) else np.nan}
            pooled |= {
                name: artifacts.quantile(own, self._edges, q) for q, name in _QUANTILES.items()
            }
            for name, value in pooled.items():
                found[f"{stem}/{name}/{end}"] = Estimate(float(value), np.nan, np.nan)
        return found | emergence.with_intervals(rows, samples=self.samples, seed=self.seed)

    def tables(self, estimates: Mapping[str, Estimate]) -> list[Table]:
        """One row a layer."""
        shares = {"outliers": "outliers, %", "cls_mass": "attention on [CLS], %"}
        if self.registers:
            shares["register_mass"] = "on registers, %"
        rows = []
        for layer in self.layers:
            end = layer_name(layer)
            numbers = [
                cell(estimates[f"artifacts/{name}/{end}"])
                for name in ("q50", "q99", "q100", "cutoff")
            ]
            parts = [cell(estimates[f"artifacts/{name}/{end}"], percent=True) for name in shares]
            random = cell(
                estimates.get(f"artifacts_random/outliers/{end}"), percent=True, control=True
            )
            rows.append([Cell(str(layer + 1)), *numbers, *parts, random])
        return [
            Table(
                "Norms of patch tokens, by layer",
                f"Before any final LayerNorm. Outliers: {_said(self.rule)}. Attention: of the "
                "[CLS] row over all tokens, mean over heads.",
                [
                    *("layer", "median norm", "99 %", "largest", "cut-off"),
                    *shares.values(),
                    "outliers, random weights, %",
                ],
                rows,
            )
        ]


def _said(rule: str) -> str:
    kind, number = artifacts.parse_rule(rule)
    if kind == "fixed":
        return f"norm above {number:g} (fixed)"
    if kind == "median":
        return f"norm above {number:g} times the layer's median"
    return "norm above the valley of the layer's histogram"
