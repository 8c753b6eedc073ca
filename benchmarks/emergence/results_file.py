"""results.json: what the runs of one budget have shown, small enough to be committed.

    {"budget": NAME, "versions": {...}, "recipe": `grid.recipe` when the first run began,
     "scenes": {SHOWN: the scenes alone, "learned" and "held_out",
                "sizes": {SIZE: [least, largest share of the image that an object has]}},
     "sweeps": [{"network", "matching", "optimizer", "rate", "trials": [{"rate", "loss", "top1"}]}],
     "runs": [{"name", "network", "matching", "pool", "optimizer", "seed", "config_hash", "rate",
               "parameters", "images_per_second", "curves", "final", "groups"}]}

`curves` has columns along training, by the names of `final_evaluation`; `final` and `groups` hold
SHOWN: what `final_evaluation.evaluate` returns; `groups` also SIZE: `final_evaluation.by_size`.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks.emergence.grid import BUDGETS, Budget, Condition, Run
from crate_jax import __version__
from crate_jax.files import write_atomically

SHOWN = ("learned", "held_out")
SIZES = ("small", "medium", "large")  # thirds of the learned, by the object's pixels
_TABLES = ("sweeps", "runs")


class Results:
    """The content of a results.json.

    Args:
        content: as the file has it.
    """

    def __init__(self, content: dict[str, Any]):
        self.content = content

    @classmethod
    def of(cls, budget: str) -> "Results":
        """Nothing yet."""
        versions = {"crate_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}
        return cls({"budget": budget, "versions": versions, "scenes": {}, "sweeps": [], "runs": []})

    @classmethod
    def read(cls, path: pathlib.Path, budget: str | None = None) -> "Results":
        """The file, or nothing yet where there is none and a budget is given.

        Raises:
            ValueError: it is of another budget, or none of ours.
            OSError: it cannot be read.
        """
        if budget is not None and not path.exists():
            return cls.of(budget)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content["budget"]
            complete = {"scenes", *_TABLES} <= set(content)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: expected the results of benchmarks.emergence, got {error!r}; restore it, "
                "or choose another --out"
            ) from error
        if not complete or found not in BUDGETS or budget not in (None, found):
            raise ValueError(
                f"{path}: expected results of --budget={budget or '/'.join(BUDGETS)}, got "
                f"{found!r}; choose another --out"
            )
        return cls(content)

    def write(self, path: pathlib.Path) -> None:
        """Whole or not at all; one line a run."""
        parts = []
        for key, value in self.content.items():
            if key in _TABLES:
                lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
                parts.append(f'"{key}": [\n{lines}\n]')
            else:
                parts.append(f'"{key}": {json.dumps(value, separators=(",", ":"))}')
        write_atomically(path, "{" + ",\n".join(parts) + "}\n")

    @property
    def budget(self) -> Budget:
        """That of the file."""
        return BUDGETS[self.content["budget"]]

    def run(self, run: Run) -> dict[str, Any] | None:
        """What a run has shown, or None."""
        return next((row for row in self.content["runs"] if row["name"] == run.name), None)

    def of_condition(self, condition: Condition) -> list[dict[str, Any]]:
        """What the runs of a condition have shown, by seed."""
        fields = dataclasses.asdict(condition)
        found = [row for row in self.content["runs"] if fields.items() <= row.items()]
        return sorted(found, key=lambda row: row["seed"])

    def rate(self, condition: Condition) -> float | None:
        """The rate that the sweep chose for a condition; None where there was no sweep yet."""
        wanted = _of_sweep(condition)
        found = (row for row in self.content["sweeps"] if wanted.items() <= row.items())
        return next((row["rate"] for row in found), None)

    def add_sweep(self, condition: Condition, trials: list[dict[str, float | None]]) -> None:
        """The trials of a condition; the rate with the lowest loss is chosen.

        Raises:
            FloatingPointError: no trial had a finite loss.
        """
        finite = [trial for trial in trials if trial["loss"] is not None]
        if not finite:
            tried = ", ".join(f"{trial['rate']:g}" for trial in trials)
            raise FloatingPointError(
                f"{condition.name}: expected a finite loss with one of the rates, got none with "
                f"{tried}; lower `factors` in benchmarks/emergence/grid.py"
            )
        rate = min(finite, key=lambda trial: trial["loss"])["rate"]
        row = _of_sweep(condition) | {"rate": rate, "trials": trials}
        self.content["sweeps"].append(row)

    def add_run(self, run: Run, shown: dict[str, Any]) -> None:
        """What a run has shown."""
        fields = dataclasses.asdict(run.condition)
        self.content["runs"].append({"name": run.name, **fields, "seed": run.seed} | shown)


def _of_sweep(condition: Condition) -> dict[str, str]:
    fields = dataclasses.asdict(condition)
    return {name: fields[name] for name in ("network", "matching", "optimizer")}
