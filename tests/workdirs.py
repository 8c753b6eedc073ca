"""What a training leaves, without a training: config.json, checkpoints, lines of metrics."""

import json

import jax.numpy as jnp

from crate_jax import config
from crate_jax.models import base, variants
from crate_jax.training import checkpoint
from tests.networks import draw


def write(directory, steps=(30,), settings=None, **model):
    """A run of `settings`, or of the smallest CRATE with other `model` fields on scenes."""
    if settings is None:
        settings = config.default()
        settings.model = config.model("crate-testing", **model)
        settings.data.image_size = max(settings.model.image_size)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.plain(settings)))
    saved = checkpoint.Checkpoints(directory, keep=len(steps))
    for step in steps:
        network = draw(variants.from_dict(settings.model.to_dict()), seed=step)
        saved.save(step, base.split(network)[1], {"step": jnp.zeros(())}, {}, {})
    saved.close()
    lines = [{"step": step, "train/loss": 2 - step / 30} for step in range(1, steps[-1] + 1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory
