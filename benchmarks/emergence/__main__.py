# PYTHON_ARGCOMPLETE_OK
"""Does segmentation emerge in CRATE more than in a ViT? A grid of runs with every control.

    python -m benchmarks.emergence --out=DIR                     # all runs, on two cores: days
    python -m benchmarks.emergence --out=DIR --only=crate-width-cls-muon,vit-width-cls-muon
    python -m benchmarks.emergence --out=DIR --list
    python -m benchmarks.emergence --out=DIR --budget=smoke      # the whole path in minutes
    python -m benchmarks.emergence --render=docs/results/emergence.json

Trains on composed scenes, evaluates along training and at the end, and writes DIR/results.json. Run
the same command again after a kill: it goes on within the run. The question, the measures and the
main comparison are in docs/emergence.md; `--render` draws that page's tables and charts again from
a results.json, and with --out=DIR the README's picture from the runs in DIR.
"""

import argparse
import sys
from collections.abc import Sequence

from crate_jax import arguments, command_line


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m benchmarks.emergence", __doc__)
    add = parser.add_argument
    add("--out", type=arguments.path, metavar="DIR", help="runs and results.json")
    add("--budget", choices=("smoke", "cpu", "gpu"), default="cpu", help="default: cpu")
    add(
        "--only",
        type=arguments.numbers(str, "beginnings of names"),
        default=(),
        metavar="LIST",
        help="only runs whose names begin so",
    )
    add("--list", action="store_true", help="show what is done")
    add("--render", type=arguments.path, metavar="JSON", help="draw docs/emergence.md again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if args.out is None and args.render is None:
        parser.error("--out=DIR is needed, or --render=JSON")
    from crate_jax.training import checkpoint

    return command_line.run(
        lambda: _work(args),
        checkpoint.CheckpointError,
        stopped="stopped by Ctrl-C; run the same command again to go on",
    )


def _work(args: argparse.Namespace) -> int:
    if args.render is not None:
        from benchmarks.emergence import document

        return document.render(args.render, args.out)
    from benchmarks.emergence import runner
    from crate_jax.files import Lock

    if args.list:
        return runner.show(args.out, args.budget, args.only)
    with Lock(args.out / ".lock"):
        return runner.work(args.out, args.budget, args.only)


if __name__ == "__main__":
    sys.exit(main())
