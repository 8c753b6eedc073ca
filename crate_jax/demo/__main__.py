# PYTHON_ARGCOMPLETE_OK
"""See what the network that ships attends to, without a training.

    python -m crate_jax.demo --out=demo
    python -m crate_jax.demo --out=demo --checkpoint=runs/scenes_tiny

Writes DIR/index.html, one page to open in a browser: an explorer to point into images, held-out
scenes and scikit-image's photographs with attention, masks and parts, and the scores beside their
controls, which are printed too. DIR/picture.png is the picture of the README: twelve held-out
scenes, the first of their split, not picked. The network is the one that ships, or a run on scenes.

Exit status: 0 done; 2 wrong usage; 130 stopped by Ctrl-C.
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence

from crate_jax import arguments, command_line

_SHOWN = 12  # scenes on the page and in the picture


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m crate_jax.demo", __doc__)
    add = parser.add_argument
    add("--out", required=True, type=arguments.path, metavar="DIR", help="the page's folder")
    add(
        "--checkpoint",
        default="scenes",
        metavar="PATH",
        help="a run on scenes, or a file packed --with-run (default: the network that ships)",
    )
    add(
        "--scored",
        type=arguments.positive,
        default=256,
        metavar="N",
        help="held-out scenes that are scored (default 256)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = command_line.parse(_parser(), argv)
    return command_line.run(functools.partial(_demo, args))


def _demo(args: argparse.Namespace) -> int:
    from crate_jax import inference
    from crate_jax.convert import shipped
    from crate_jax.demo import page, seeing
    from crate_jax.export import tables
    from crate_jax.files import destination, write_atomically

    begin = time.monotonic()
    for name in ("picture.png", "index.html"):
        destination(args.out / name)  # what cannot be written is said before work
    network, run = inference.load(args.checkpoint), shipped.run_of(args.checkpoint)
    scenes = seeing.held_out(run["config"], args.scored)
    command_line.say(f"network   {network.config.family}, step {run['step']:,} of its run")
    score = seeing.score(network, scenes, args.scored, keep=run["config"]["evaluation"]["keep"])
    command_line.say("drawing   attention, masks and parts; cutting graphs for the explorer")
    examples = [scenes[index] for index in range(_SHOWN)]
    seen = seeing.see(network, [example["image"] for example in examples])
    picture = page.picture(seen, examples, score.best_layer)
    write_atomically(args.out / "picture.png", picture)
    path = page.write(args.out / "index.html", network, run, scenes, examples, seen, score)
    tables.print_tables(score.tables())
    command_line.say(f"page      {path}, in {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
