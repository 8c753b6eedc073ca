# PYTHON_ARGCOMPLETE_OK
"""How good frozen features are: a linear probe and k nearest neighbours.

    python -m crate_jax.probe --checkpoint=PATH --config=configs/finetune_cifar10.py \\
        --config.data.data_dir=DATA
    python -m crate_jax.probe --checkpoint=RUN --config=configs/scenes_mae.py --out=probe.json

The config says which data, by its section `data`; the network is the checkpoint's, at the config's
image size. Features are `out["features"]`, what stands before the head: [CLS] or the mean token.
Both splits are seen as in evaluation, without augmentation. A PyTorch file of which more than the
heads must be declared is converted first (`python -m crate_jax.convert`).
"""

import functools
import json
import sys

from absl import app, flags

from crate_jax import command_line, keys
from crate_jax import main as training

# `--config` is crate_jax.main's.
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's directory or a checkpoint file.")
_HEADS = flags.DEFINE_integer("heads", None, "Heads of the network, where a file does not tell.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the scores.")
_METAVARS = {
    "config": command_line.CONFIG,
    "checkpoint": command_line.CHECKPOINT,
    "heads": "N",
    "out": "FILE",
}


def main(argv: list[str]) -> int:
    """Prints the scores; returns the exit status."""
    del argv
    import crate_jax
    from crate_jax import config as configuration
    from crate_jax import files
    from crate_jax.training import probing

    config = configuration.resolve(flags.FLAGS.config)
    declared = {"image_size": config.data.image_size}
    if _HEADS.value:
        declared["heads"] = _HEADS.value
    model = crate_jax.load(_CHECKPOINT.value, **declared)
    scores = probing.probe(model, config)
    print(f"k-NN (20 neighbours)  top-1 {scores['knn_top1']:.4f}")
    print(f"linear probe          top-1 {scores['linear_top1']:.4f}  l2 {scores['linear_l2']:g}")
    print(f"{scores['train_images']:,} images for fitting, {scores['images']:,} held out")
    if _OUT.value:
        files.write_atomically(_OUT.value, json.dumps(scores, indent=2) + "\n")
    return 0


def run() -> None:
    """The command line."""
    sys.argv[1:] = command_line.with_packaged_configs(sys.argv[1:])
    parser = command_line.of_flags("python -m crate_jax.probe", __doc__, _METAVARS)
    command_line.answer(parser, sys.argv[1:], keys.known)
    required = ("config", "checkpoint")
    app.run(main, flags_parser=functools.partial(training.parse_flags, required=required))


if __name__ == "__main__":
    sys.exit(command_line.run(run))
