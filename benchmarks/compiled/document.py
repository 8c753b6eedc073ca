"""What compiled.json says, as the generated parts of docs/training.md and docs/performance.md."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import pages
from benchmarks.compiled.cases import (
    AT_ONCE,
    ATTENTION,
    COUNTED,
    GIB,
    GRID,
    HARDWARE,
    MASKCUT,
    MIB,
    RECIPES,
    SHAPES,
    Case,
    cases,
    deep,
    default_effort,
)
from benchmarks.compiled.results_file import Results
from crate_jax import files
from crate_jax.command_line import say

_TITLES = {"v5e": "v5e", "v6e": "v6e", "h100": "H100"}


def render(results: Results) -> int:
    """Writes the generated parts of the pages again; returns the exit status 0."""
    for path, page in written(results).items():
        files.write_atomically(path, page)
        say(f"wrote {path}")
    return 0


def written(results: Results) -> dict[pathlib.Path, str]:
    """docs/training.md and docs/performance.md with their generated parts."""
    parts = {
        "compiled for memory": memory_table(results),
        "compiled": pages.joined(_all(results)),
        "compiled for attention": attention_table(results),
    }
    return {
        path: pages.written(path.read_text(encoding="utf-8"), parts)
        for path in (pages.DOCS / "training.md", pages.DOCS / "performance.md")
    }


def memory_table(results: Results) -> str:
    """Counted beside compiled, for one more image."""
    head = ("network", "config", "parameters", "state, GiB", "gradients, GiB")
    head += ("kept an image, MiB: `none`", "`dots`", "`full`")
    head += ("compiled for v5e: `none`", *list(_TITLES.values())[1:])
    rows = []
    for name in COUNTED:
        counted = results.content["counted"].get(name)
        rows.append([RECIPES[name], f"`{name}`"])
        rows[-1] += _counted(counted) if counted else 6 * [""]
        for chip in HARDWARE:
            step = _program(results, Case(name, chip), "step")
            rows[-1].append(f"{step['work'] / AT_ONCE / MIB:.1f}" if step else "")
    return pages.table(head, rows, 2)


def attention_table(results: Results) -> str:
    """Bytes accessed by each backend of attention, as the compiler counts them."""
    case, rows = Case(ATTENTION, "v5e"), []
    for shape in SHAPES:
        found = [_program(results, case, f"{backend} {shape}") for backend in ("xla", "pallas")]
        sizes = (f"{one['accessed'] / 1e6:.1f} MB" if one else "" for one in found)
        rows.append([", ".join(map(str, shape)), *sizes])
    return pages.table(("tokens, heads, head size", "`xla`", "`pallas`"), rows)


def _counted(counted: Mapping) -> list[str]:
    held = [f"{counted[part]:.2f}" for part in ("state", "gradients")]
    kept = [f"{counted[remat]:.1f}" for remat in ("none", "dots", "full")]
    return [f"{counted['parameters']:,}", *held, *kept]


def _all(results: Results) -> Iterator[str]:
    data = [_TITLES[chip] for chip in HARDWARE]
    kinds = [(chip, fsdp) for fsdp in (1, 4) for chip in HARDWARE]
    yield "The step, GiB a chip, held and at work:"
    steps = [
        [f"`{name}`", *(_held_and_work(results, Case(name, *kind), "step") for kind in kinds)]
        for name in RECIPES
    ]
    yield pages.table(("recipe", *data, *(f"{title}, fsdp" for title in data)), steps)
    yield (
        "What a step on v5e communicates, as the compiler has it, MiB on each chip; and the "
        "evaluation of one image a chip, GiB at work:"
    )
    rows = []
    for name in RECIPES:
        moved = [_moved(_program(results, Case(name, "v5e", fsdp), "step")) for fsdp in (1, 4)]
        ones = (_program(results, Case(name, chip), "evaluation") for chip in HARDWARE)
        rows.append([f"`{name}`", *moved, *(_gib(one["work"]) if one else "" for one in ones)])
    yield pages.table(
        ("recipe", "data parallel", "fsdp", *(f"evaluation: {t}" for t in data)), rows
    )
    cuts = [
        [name, *(_held_and_work(results, Case(MASKCUT, chip), name) for chip in HARDWARE)]
        for name in ("affinity", "cut")
    ]
    yield (
        "Deep networks for v5e, the step unrolled and as a loop over layers (`scan_layers`), "
        f"{AT_ONCE} images a chip; alpha-H/14 with `fsdp` 4, since a chip does not hold its state. "
        "Seconds of the processor with the compiler's effort lowered:"
    )
    yield pages.table(
        ("", "unrolled: seconds", "GiB at work", "as a loop: seconds", "GiB at work"),
        [
            [title, *_seconds_and_work(results, plain), *_seconds_and_work(results, scanned)]
            for title, plain, scanned in (
                ("CRATE-L/16, 24 layers", Case("imagenet_l", "v5e"), deep()[0]),
                ("CRATE-alpha-H/14, 32 layers", *deep()[1:]),
            )
        ],
    )
    yield f"MaskCut on the device, two images of {GRID:,} patches, GiB held and at work:"
    yield pages.table(("", *data), cuts)
    yield from _said(results)


def _said(results: Results) -> Iterator[str]:
    rows = [row for case in cases() if (row := results.of(case))]
    seconds = sum(one.get("seconds", 0) for row in rows for one in row["programs"].values())
    compilers = sorted({row["compiler"] for row in rows})
    yield (
        f"{len(rows)} of {len(cases())} cases were compiled, in {seconds:,.0f} s of the processor "
        f"in all, by {' and '.join(compilers)}."
    )
    failed = [
        f"{case}, {name}: {one['failed'].rstrip('.')}"
        for case in cases()
        for name, one in (results.of(case) or {"programs": {}})["programs"].items()
        if "failed" in one
    ]
    if failed:
        yield "Failed: " + "; ".join(failed) + "."
    missing = [case for case in cases() if results.of(case) is None]
    if missing:
        groups = {}
        for case in missing:
            chips = _TITLES[case.hardware] + ", fsdp" * (case.fsdp > 1)
            groups.setdefault(chips, []).append(case.recipe)
        told = (
            "all" if set(RECIPES) <= set(names) else ", ".join(names) for names in groups.values()
        )
        yield (
            "Not compiled: "
            + "; ".join(f"{chips}: {names}" for chips, names in zip(groups, told, strict=True))
            + "."
        )
    full = [
        f"`{case.recipe}` {_gib(run['work'])} GiB at work in place of {_gib(quick['work'])} "
        f"({run['seconds']:.0f} and {quick['seconds']:.0f} s of the processor)"
        for case in cases()
        if default_effort(case) < 0 and results.of(case, 0.0)
        for run, quick in [
            [_program(results, case, "step", effort) for effort in (0.0, default_effort(case))]
        ]
        if run and quick
    ]
    if full:
        yield "With the whole effort, as a run compiles, on v5e: " + "; ".join(full) + "."


def _program(
    results: Results, case: Case, name: str, effort: float | None = None
) -> dict[str, Any] | None:
    program = (results.of(case, effort) or {"programs": {}})["programs"].get(name)
    return program if program and "failed" not in program else None


def _held_and_work(results: Results, case: Case, name: str) -> str:
    one = _program(results, case, name)
    return f"{_gib(one['held'])} + {_gib(one['work'])}" if one else ""


def _seconds_and_work(results: Results, case: Case) -> tuple[str, str]:
    one = _program(results, case, "step")
    return (f"{one['seconds']:.0f}", _gib(one["work"])) if one else ("", "")


def _moved(program: Mapping | None) -> str:
    return ", ".join(
        f"{count} {kind}: {size / MIB:,.1f}"
        for kind, (count, size) in (program or {"collectives": {}})["collectives"].items()
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
