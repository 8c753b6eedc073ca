"""Quick start: python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR."""

from crate_jax import config as configuration


def get_config(arg=None):
    """The config."""
    del arg
    c = configuration.default()
    c.steps = 1500
    c.batch_size = 64
    c.model = configuration.model("crate-testing", patch_size=4, dim=128, heads=4, depth=4)
    c.data.image_size = 32
    c.evaluate_every = "500 steps"
    c.checkpoint_every = "250 steps"
    c.log_every = "25 steps"
    return c
