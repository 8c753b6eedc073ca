"""Quick start: python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR."""

from crate_jax import config as configuration


def get_config(arg=None):
    """The config; the argument `model=vit` trains the baseline on the same data."""
    a = configuration.arguments(arg, model="crate", images=80_000)
    c = configuration.default()
    c.batch_size = 32
    c.steps = a.images // c.batch_size
    size = {"patch_size": 4, "dim": 128, "heads": 4, "depth": 4}
    if a.model == "crate":
        c.model = configuration.model("crate-testing", **size, step_size=0.3)
    else:
        c.model = configuration.model("vit-testing", **size)
    c.data.image_size = 32
    c.data.scenes.train_length = 1_000_000
    c.data.scenes.scale = (0.55, 0.8)
    c.label_smoothing = 0.1
    c.log_every = "100 steps"
    c.evaluate_every = "500 steps"
    c.checkpoint_every = "500 steps"
    c.evaluation.batch_size = 250
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.clip_norm = 1.0
    c.optimizer.warmup = "5000 examples"
    return c
