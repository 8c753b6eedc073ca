# PYTHON_ARGCOMPLETE_OK
"""Every recipe's programs compiled for chips that are not there, and what their memory would hold.

    pip install -e ".[tpu]" && pip install jax-cuda13-plugin==JAX_VERSION
    python -m benchmarks.compiled --out=docs/results/compiled.json
    python -m benchmarks.compiled --out=docs/results/compiled.json --only=v5e --recipes=imagenet_b
    python -m benchmarks.compiled --out=docs/results/compiled.json --list
    python -m benchmarks.compiled --render=docs/results/compiled.json

A case is a recipe on four chips, its batch split over them: the training step on 16 images a chip,
and the evaluation with every layer captured on one; or with `fsdp` 4, its state split too: the step
alone. Besides, MaskCut's device path, attention by backend, and deep
networks as a loop over layers. What is done is written after every case and not done again
unless the recipe changed; what is not done is listed. `--render` writes the tables of
docs/training.md and docs/performance.md again.

`--effort` is JAX's `exec_time_optimization_effort`: -1 takes a sixth of the time for TPU, and plans
a little more memory; 0 is what a run compiles with.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from crate_jax import arguments, command_line, files
from crate_jax.command_line import say

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
DOCS = pathlib.Path(__file__).parents[1] / "docs"


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if (args.out is None) == (args.render is None):
        parser.error("one of --out=JSON and --render=JSON is needed")
    if args.render is not None:
        return command_line.run(lambda: render(Results.read(args.render)))
    return command_line.run(lambda: _work(args))


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m benchmarks.compiled", __doc__)
    add = parser.add_argument
    add("--out", type=arguments.path, metavar="JSON", help="what was compiled; taken up again")
    add("--render", type=arguments.path, metavar="JSON", help="write the pages' tables again")
    add("--list", action="store_true", help="show what is done, and what is not")
    names = {"type": arguments.numbers(str, "names"), "default": (), "metavar": "LIST"}
    add("--only", help=f"chips, of {', '.join(HARDWARE)}", **names)
    add("--recipes", help="of configs, or maskcut", **names)
    add("--fsdp", type=int, choices=(1, 4), help="of the two alone")
    add("--effort", type=float, help="of the compiler, -1 to 1 (default: -1 for TPU, 0 for CUDA)")
    return parser


def _work(args: argparse.Namespace) -> int:
    results = Results.read(args.out)
    for name, known in (("only", HARDWARE), ("recipes", (*RECIPES, *DEEP, MASKCUT, ATTENTION))):
        if strange := [one for one in getattr(args, name) if one not in known]:
            raise ValueError(f"--{name}: expected some of {', '.join(known)}, got {strange[0]}")
    wanted = [
        case
        for case in cases()
        if (not args.only or case.hardware in args.only)
        and (not args.recipes or case.recipe in args.recipes)
        and args.fsdp in (None, case.fsdp)
    ]
    if not args.list:
        with files.Lock(args.out.with_name(f".{args.out.name}.lock")):
            for name in COUNTED:
                if not args.recipes or name in args.recipes:
                    results.count(name)
            for case in wanted:
                effort = default_effort(case) if args.effort is None else args.effort
                if results.of(case, effort) is None:
                    results.add(measure(case, effort))
                    say(f"{case}, effort {effort:g}: {_line(results.of(case, effort))}")
    for case in wanted:
        row = results.of(case)
        say(f"{case}: {_line(row)}" if row else f"{case}: not compiled")
    return 0


def _line(row: Mapping) -> str:
    return "; ".join(
        f"{name} failed: {one['failed']}"
        if "failed" in one
        else f"{name} {_gib(one['held'])} GiB held, {_gib(one['work'])} at work, "
        f"{one['seconds']:.0f} s of the processor"
        for name, one in row["programs"].items()
    )


# ---- Compiling -----------------------------------------------------------------------------------


def default_effort(case: Case) -> float:
    """Less than the whole where that takes minutes."""
    return 0.0 if case.hardware == "h100" or case.recipe == ATTENTION else -1.0


def measure(case: Case, effort: float | None = None) -> dict[str, Any]:
    """The row of a case: its programs compiled, and what the compiler says of them."""
    from crate_jax.training import topology

    effort = default_effort(case) if effort is None else effort
    options = {"exec_time_optimization_effort": effort}
    if case.hardware == "h100":
        options |= topology.CUDA_OPTIONS
    lowered = {MASKCUT: _maskcut, ATTENTION: _attention}.get(case.recipe, _of_recipe)
    programs = {
        name: _plan(lower, options)
        for name, lower in lowered(case, topology.devices(HARDWARE[case.hardware])).items()
    }
    return {
        **dataclasses.asdict(case),
        "effort": effort,
        "made_from": made_from(case.recipe),
        "compiler": compiler(case.hardware),
        "programs": programs,
    }


def _plan(lower: Callable[[], Any], options: Mapping[str, Any]) -> dict[str, Any]:
    import jax

    from crate_jax.training import topology

    begin = time.process_time()
    try:
        compiled = lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error).splitlines()[0]}
    seconds = time.process_time() - begin
    plan = compiled.memory_analysis()
    return {
        "held": plan.argument_size_in_bytes,
        "work": plan.temp_size_in_bytes,
        "accessed": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "collectives": {k: list(v) for k, v in topology.collectives(compiled.as_text()).items()},
        "seconds": round(seconds, 1),
    }


def _of_recipe(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    import jax

    from crate_jax.models import base, variants
    from crate_jax.segmentation import attention, layerwise
    from crate_jax.training import program, sharding

    mesh = sharding.make_mesh(case.fsdp, devices)
    config = of_recipe(case.recipe, fsdp=case.fsdp, batch_size=AT_ONCE * mesh.size)
    network = variants.from_dict(config.model.to_dict())
    made = program.make(config, network, mesh, lambda _: 1e-3)

    def evaluation(params, images):
        out = base.forward(made.definition, capture=True)(params, images)[1]
        maps = attention.layer_maps(out["query"], out["key"])
        return maps, layerwise.of_layers(out["query"], out["tokens"])

    few = _batch(mesh.size, network, mesh)["image"]
    step = {"step": lambda: made.step.lower(*made.shapes, _batch(config.batch_size, network, mesh))}
    if case.fsdp > 1 or case.recipe in DEEP:
        return step
    return step | {"evaluation": lambda: jax.jit(evaluation).lower(made.shapes[0], few)}


def _batch(size: int, network: Any, mesh: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from crate_jax.training import sharding

    shapes = {
        "image": jax.ShapeDtypeStruct((size, *network.image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return sharding.batch_shapes(shapes, sharding.batch_sharding(mesh))


def _maskcut(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    from crate_jax.segmentation import ncut_device

    shape = functools.partial(
        jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(devices[0])
    )
    features, tau = shape((2, GRID, 768), jnp.float32), shape((), jnp.float32)
    graph, painted = shape((2, GRID, GRID), jnp.bfloat16), shape((2, GRID), jnp.bool_)
    return {
        "affinity": lambda: ncut_device.affinity.lower(features, tau),
        "cut": lambda: ncut_device.solve.lower(graph, painted),
    }


def _attention(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    from crate_jax.models import backends

    def both(backend, w, cotangent):
        out, back = jax.vjp(lambda w: backends.attend(w, w, w, backend), w)
        return out, back(cotangent)

    place = jax.sharding.SingleDeviceSharding(devices[0])
    return {
        f"{backend} {shape}": functools.partial(
            jax.jit(functools.partial(both, backend)).lower,
            *2 * [jax.ShapeDtypeStruct((2, *shape), jnp.bfloat16, sharding=place)],
        )
        for shape in SHAPES
        for backend in ("xla", "pallas")
    }


def of_recipe(name: str, **changes: Any) -> Any:
    """Its config, resolved."""
    from benchmarks import train_step

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


def compiler(hardware: str) -> str:
    """What compiles for a kind of chip, with its version."""
    package = "jax-cuda13-plugin" if hardware == "h100" else "libtpu"
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{hardware}: expected the package {package}, which compiles for it; install it"
        ) from error


# ---- What was compiled ---------------------------------------------------------------------------


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
        from benchmarks import memory

        if recipe not in self.content["counted"]:
            counted = dict(memory.counted(of_recipe(recipe)))
            for part in ("state", "gradients"):
                counted[part] = round(counted[part] / GIB, 2)
            for remat in ("none", "dots", "full"):
                kept = memory.kept_an_image(of_recipe(recipe, remat=remat))
                counted[remat] = round(kept / MIB, 1)
            self.content["counted"][recipe] = counted
            self.write()


# ---- The pages -----------------------------------------------------------------------------------

_PART = re.compile(r"(<!-- (compiled(?: for \w+)?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_TITLES = {"v5e": "v5e", "v6e": "v6e", "h100": "H100"}


def render(results: Results) -> int:
    """Writes the generated parts of the pages again; returns the exit status 0."""
    for path, page in pages(results).items():
        files.write_atomically(path, page)
        say(f"wrote {path}")
    return 0


def pages(results: Results) -> dict[pathlib.Path, str]:
    """docs/training.md and docs/performance.md with their generated parts."""
    whole = "\n\n".join(map(_filled, _all(results)))
    parts = {
        "compiled for memory": memory_table(results),
        "compiled": whole,
        "compiled for attention": attention_table(results),
    }
    return {
        path: _PART.sub(lambda m: f"{m[1]}{parts[m[2]]}\n{m[3]}", path.read_text(encoding="utf-8"))
        for path in (DOCS / "training.md", DOCS / "performance.md")
    }


def _filled(paragraph: str) -> str:
    """In lines as long as the page's; tables as they are."""
    if paragraph.startswith("|"):
        return paragraph
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


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
    return _table(head, rows, numbers_from=2)


def attention_table(results: Results) -> str:
    """Bytes accessed by each backend of attention, as the compiler counts them."""
    case, rows = Case(ATTENTION, "v5e"), []
    for shape in SHAPES:
        found = [_program(results, case, f"{backend} {shape}") for backend in ("xla", "pallas")]
        sizes = (f"{one['accessed'] / 1e6:.1f} MB" if one else "" for one in found)
        rows.append([", ".join(map(str, shape)), *sizes])
    return _table(("tokens, heads, head size", "`xla`", "`pallas`"), rows)


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
    yield _table(("recipe", *data, *(f"{title}, fsdp" for title in data)), steps)
    yield (
        "What a step on v5e communicates, as the compiler has it, MiB on each chip; and the "
        "evaluation of one image a chip, GiB at work:"
    )
    rows = []
    for name in RECIPES:
        moved = [_moved(_program(results, Case(name, "v5e", fsdp), "step")) for fsdp in (1, 4)]
        ones = (_program(results, Case(name, chip), "evaluation") for chip in HARDWARE)
        rows.append([f"`{name}`", *moved, *(_gib(one["work"]) if one else "" for one in ones)])
    yield _table(("recipe", "data parallel", "fsdp", *(f"evaluation: {t}" for t in data)), rows)
    cuts = [
        [name, *(_held_and_work(results, Case(MASKCUT, chip), name) for chip in HARDWARE)]
        for name in ("affinity", "cut")
    ]
    yield (
        "Deep networks for v5e, the step unrolled and as a loop over layers (`scan_layers`), "
        f"{AT_ONCE} images a chip; alpha-H/14 with `fsdp` 4, since a chip does not hold its state. "
        "Seconds of the processor with the compiler's effort lowered:"
    )
    yield _table(
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
    yield _table(("", *data), cuts)
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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    rule = ["---"] * numbers_from + ["---:"] * (len(head) - numbers_from)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    return (
        "\n".join(lines)
        .replace("| ---", "|---")
        .replace("--- |", "---|")
        .replace("---: |", "---:|")
    )


if __name__ == "__main__":
    sys.exit(main())
