"""A small CRATE-MAE on scenes: minutes on two cores, no labels used.

    python -m crate_jax.main --config=configs/scenes_mae.py --workdir=DIR

Three quarters of the patches are hidden and reconstructed (2404.02446); the report shows held-out
images beside what was seen of them and what the network makes of it.
"""

from crate_jax import config


def get_config(arg=None):
    """The config; no arguments."""
    config.arguments(arg)
    c = config.default()
    c.steps = 1500
    c.batch_size = 64
    c.model = config.model(
        "crate-mae-testing",
        image_size=64,
        patch_size=8,
        dim=128,
        heads=4,
        depth=4,
        decoder_depth=2,
    )
    c.data.image_size = 64
    c.evaluate_every = "500 steps"
    c.checkpoint_every = "250 steps"
    c.log_every = "50 steps"
    c.evaluation.capture_images = 512
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.warmup = "100 steps"
    return c
