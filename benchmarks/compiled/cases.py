"""What is compiled, for which chips."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

from benchmarks import train_step

RECIPES = {
    "scenes_tiny": "CRATE, width 128",
    "scenes_shipped": "CRATE, width 192",
    "scenes_mae": "CRATE-MAE, width 128",
    "imagenet_t": "CRATE-T/16",
    "imagenet_s": "CRATE-S/16",
    "imagenet_b": "CRATE-B/16",
    "imagenet_l": "CRATE-L/16",
    "imagenet21k_s8": "CRATE-S/8",
    "imagenet21k_b8": "CRATE-B/8",
    "finetune": "CRATE-B/8, fine-tuned",
    "alpha_b": "CRATE-alpha-B/16",
    "mae_b": "CRATE-MAE-B/16",
}
# Deep networks as a loop over their layers, or not: for the seconds that compiling takes.
DEEP = {
    "imagenet_l_scan": ("imagenet_l", {"scan_layers": True}),
    "alpha_h14": ("alpha.py:h,patch=14", {}),
    "alpha_h14_scan": ("alpha.py:h,patch=14", {"scan_layers": True}),
}
COUNTED = (*list(RECIPES)[3:9], *list(RECIPES)[10:])
MASKCUT = "maskcut"
ATTENTION = "attention"  # by backend, with its gradient, of two images: tokens, heads, head size
SHAPES = ((197, 12, 64), (257, 2, 48), (785, 6, 64))
HARDWARE = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "h100": "h100:4"}
AT_ONCE = 16  # images a chip
GRID = 3600  # patches that MaskCut cuts, of an image of 480 px with patches of 8
# Of a config, what its programs depend on.
READ = (
    *("model", "dtype", "remat", "accumulate", "attention_backend", "scan_layers"),
    *("label_smoothing", "mixup", "cutmix"),
)
MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled together: a recipe or MaskCut, for a kind of chip."""

    recipe: str
    hardware: str
    fsdp: int = 1

    def __str__(self) -> str:
        return f"{self.recipe}-{self.hardware}" + f"-fsdp{self.fsdp}" * (self.fsdp > 1)


def cases() -> list[Case]:
    """All, what is asked for most first."""
    data = [Case(name, chip) for chip in HARDWARE for name in (*RECIPES, MASKCUT)]
    data.append(Case(ATTENTION, "v5e"))
    return data + deep() + [Case(name, chip, 4) for chip in HARDWARE for name in RECIPES]


def deep() -> list[Case]:
    """For v5e; alpha-H/14 with its state split, since a chip does not hold it."""
    return [Case(name, "v5e", 4 if "h14" in name else 1) for name in DEEP]


def default_effort(case: Case) -> float:
    """Less than the whole where that takes minutes."""
    return 0.0 if case.hardware == "h100" or case.recipe == ATTENTION else -1.0


def of_recipe(name: str, **changes: Any) -> Any:
    """Its config, resolved."""
    file, own = DEEP.get(name, (name, {}))
    file, _, argument = file.removesuffix(".py").partition(".py:")
    return train_step.load(f"configs/{file}.py:{argument}".rstrip(":"), **own | changes)


@functools.cache
def made_from(recipe: str) -> str:
    """A hash of what the programs are made from, beside the code; two equal ones are one case."""
    if recipe in (MASKCUT, ATTENTION):
        return f"{GRID} patches" if recipe == MASKCUT else str(SHAPES)
    config = of_recipe(recipe).to_dict()
    values = {name: config[name] for name in READ} | {"optimizer": config["optimizer"]["name"]}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
