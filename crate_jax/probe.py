# PYTHON_ARGCOMPLETE_OK
"""How good frozen features are: a linear probe and k nearest neighbours.

    python -m crate_jax.probe --checkpoint=PATH --config=configs/finetune_cifar10.py \\
        --config.data.data_dir=DATA
    python -m crate_jax.probe --checkpoint=RUN --config=configs/scenes_mae.py --out=probe.json

The config says which data, by its section `data`; the network is the checkpoint's, at the config's
image size. Features are `out["features"]`, what stands before the head: [CLS] or the mean token.
Both splits are seen as in evaluation, without augmentation. --heads, --mean and the like declare
what a PyTorch file does not tell, as for `python -m crate_jax.convert`.
"""

import argparse
import json
import os
import sys
from typing import Any

from absl import flags

from crate_jax import command_line, files
from crate_jax.convert import arguments
from crate_jax.main import start

# `--config` is crate_jax.main's.
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "scenes, a run's directory or a file.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the scores.")
_METAVARS = {
    "config": command_line.CONFIG,
    "checkpoint": command_line.CHECKPOINT,
    "out": "FILE",
}
_DECLARATIONS = argparse.ArgumentParser("python -m crate_jax.probe", add_help=False)
arguments.add_declarations(_DECLARATIONS.add_argument)
_DECLARED = [action for action in _DECLARATIONS._actions if action.dest != "image_size"]
for _action in _DECLARED:  # the size is the config's
    flags.DEFINE_string(_action.dest, None, _action.help)
    _METAVARS[_action.dest] = _action.metavar or "NAME"


def _declared() -> dict[str, Any]:
    given = {action.dest: flags.FLAGS[action.dest].value for action in _DECLARED}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]
    return arguments.declared(_DECLARATIONS.parse_args(argv))


def main(argv: list[str]) -> int:
    """Prints the scores; returns the exit status."""
    del argv
    out = os.path.expanduser(_OUT.value or "")
    if out:
        files.destination(out)  # said before all work, of which importing is a part
    import crate_jax
    from crate_jax.config import resolve
    from crate_jax.training import probing

    config = resolve(flags.FLAGS.config)
    model = crate_jax.load(_CHECKPOINT.value, image_size=config.data.image_size, **_declared())
    scores = probing.probe(model, config)
    print(f"k-NN (20 neighbours)  top-1 {scores['knn_top1']:.4f}")
    print(f"linear probe          top-1 {scores['linear_top1']:.4f}  l2 {scores['linear_l2']:g}")
    print(f"{scores['train_images']:,} images for fitting, {scores['images']:,} held out")
    if out:
        files.write_atomically(out, json.dumps(scores, indent=2) + "\n")
    return 0


def run() -> None:
    """The command line."""
    start("probe", __doc__, _METAVARS, main, required=("config", "checkpoint"))


if __name__ == "__main__":
    sys.exit(command_line.run(run))
