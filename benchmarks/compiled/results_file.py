"""The file that holds what was compiled."""

import dataclasses
import json
import pathlib
from typing import Any

from benchmarks import memory
from benchmarks.compiled.cases import GIB, MIB, Case, default_effort, made_from, of_recipe
from crate_jax import files


class Results:
    """The content of compiled.json.

    Attributes:
        content: {"counted": {recipe: {"parameters", "state" and "gradients" in GiB, "none", "dots"
            and "full" in MiB an image}}, "rows": [what `measure` returns]}, in bytes.
        path: of the file.
    """

    def __init__(self, content: dict[str, Any], path: pathlib.Path):
        self.content, self.path = content, path

    @classmethod
    def read(cls, path: pathlib.Path) -> "Results":
        """The file, or nothing yet where there is none."""
        if not path.exists():
            return cls({"counted": {}, "rows": []}, path)
        return cls(json.loads(path.read_text(encoding="utf-8")), path)

    def write(self) -> None:
        """To the file, whole or not at all."""
        files.write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")

    def of(self, case: Case, effort: float | None = None) -> dict[str, Any] | None:
        """The row of a case that is what the recipe is now; None where there is none."""
        effort = default_effort(case) if effort is None else effort
        key = dataclasses.asdict(case) | {"effort": effort, "made_from": made_from(case.recipe)}
        rows = [row for row in self.content["rows"] if key.items() <= row.items()]
        return rows[0] if rows else None

    def add(self, row: dict[str, Any]) -> None:
        """In place of another one of the same case and effort."""
        same = ("recipe", "hardware", "fsdp", "effort")
        rows = self.content["rows"]
        rows[:] = [one for one in rows if any(one[k] != row[k] for k in same)]
        rows.append(row)
        self.write()

    def count(self, recipe: str) -> None:
        """By `benchmarks.memory`, where that was not done."""
        if recipe not in self.content["counted"]:
            counted = dict(memory.counted(of_recipe(recipe)))
            for part in ("state", "gradients"):
                counted[part] = round(counted[part] / GIB, 2)
            for remat in ("none", "dots", "full"):
                kept = memory.kept_an_image(of_recipe(recipe, remat=remat))
                counted[remat] = round(kept / MIB, 1)
            self.content["counted"][recipe] = counted
            self.write()
