"""Class folders of small JPEGs, and the config of a run on them."""

import numpy as np
from PIL import Image

from crate_jax.config import default, model

CLASSES = ("cat", "dog", "owl")


def write(root, train=8, val=4, seed=0):
    """So many images a class: a bright square whose place tells the class, and noise."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                image = rng.integers(0, 90, (40, 48, 3), np.uint8)
                image[8 * label : 8 * label + 16, 10 * label : 10 * label + 20] += 150
                Image.fromarray(image).save(folder / f"{k:03d}.jpg", quality=90)
    return root


def config(root, steps=12, **changes):
    """A run of seconds, a line and a loss for every step, a checkpoint every fourth."""
    c = default()
    c.steps = steps
    c.batch_size = 8
    c.model = model("crate-testing", depth=1)
    c.data.name, c.data.root, c.data.image_size = "folder", str(root), 32
    c.data.resize = 36
    c.evaluation.batch_size = 8
    c.evaluation.capture_images = 0
    c.log_every, c.checkpoint_every, c.evaluate_every = "1 steps", "4 steps", "0 steps"
    c.tensorboard = c.report = False
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (c[section] if section else c)[name] = value
    return c
