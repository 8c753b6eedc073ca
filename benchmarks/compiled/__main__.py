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
import sys
from collections.abc import Mapping, Sequence

from benchmarks.compiled.cases import (
    ATTENTION,
    COUNTED,
    DEEP,
    GIB,
    HARDWARE,
    MASKCUT,
    RECIPES,
    cases,
    default_effort,
)
from crate_jax import arguments, command_line, files
from crate_jax.command_line import say


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if (args.out is None) == (args.render is None):
        parser.error("one of --out=JSON and --render=JSON is needed")
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
    from benchmarks.compiled import document
    from benchmarks.compiled.results_file import Results

    if args.render is not None:
        return document.render(Results.read(args.render))
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
        from benchmarks.compiled import compiling

        with files.Lock(args.out.with_name(f".{args.out.name}.lock")):
            for name in COUNTED:
                if not args.recipes or name in args.recipes:
                    results.count(name)
            for case in wanted:
                effort = default_effort(case) if args.effort is None else args.effort
                if results.of(case, effort) is None:
                    results.add(compiling.measure(case, effort))
                    say(f"{case}, effort {effort:g}: {_line(results.of(case, effort))}")
    for case in wanted:
        row = results.of(case)
        say(f"{case}: {_line(row)}" if row else f"{case}: not compiled")
    return 0


def _line(row: Mapping) -> str:
    return "; ".join(
        f"{name} failed: {one['failed']}"
        if "failed" in one
        else f"{name} {one['held'] / GIB:.2f} GiB held, {one['work'] / GIB:.2f} at work, "
        f"{one['seconds']:.0f} s of the processor"
        for name, one in row["programs"].items()
    )


if __name__ == "__main__":
    sys.exit(main())
