"""A run of seconds, for tests; the argument is a number of steps."""

from crate_jax import config


def get_config(arg="12"):
    c = config.default()
    c.steps = int(arg)
    c.batch_size = 16
    c.model = config.model("crate-testing", depth=2)
    c.data.image_size = 32
    c.data.scenes.val_length = 24
    c.data.scenes.classes = 10
    c.evaluation.batch_size = 16
    c.evaluation.report_images = 2
    c.log_every = "3 steps"
    c.evaluate_every = "6 steps"
    c.checkpoint_every = "2 steps"
    c.tensorboard = False
    c.report = False
    return c
