"""CRATE-MAE-B/16 on ImageNet-1k, the recipe of 2404.02446: masked patches, no labels used.

    python -m crate_jax.main --config=configs/mae_b.py --workdir=DIR --config.data.root=IMAGES

IMAGES holds train/CLASS/*.JPEG and val/CLASS/*.JPEG; to prepare it from the official archives:
`python -m crate_jax.data.prepare imagenet --tars=DIR --out=IMAGES`.

75 % of the patches are hidden, AdamW, batch 4096, 800 epochs with 40 of warm-up, weight decay 0.1.
The paper's "base" learning rate 3e-5 is taken as MAE means it, times batch / 256, so the peak is
4.8e-4 [open]. Beta2 0.95, the random crop from 20 % of the area and the flip are MAE's, to whose
training code the authors refer [open]. Weights named lmd5.0 were trained with lambda 5:
`--config.model.lambd=5.0`.

Not run by this project, which has no ImageNet.
"""

from crate_jax import config


def get_config(arg=None):
    """The config; argument size=t, s, b or l."""
    a = config.arguments(arg, size="b")
    config.choices("config argument size", a.size, ("t", "s", "b", "l"))
    c = config.default()
    c.epochs = 800.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = config.model(f"crate-mae-{a.size}16")
    c.data.name = "folder"
    c.data.image_size = 224
    c.data.workers = 16
    c.data.crop_scale = (0.2, 1.0)
    c.evaluation.batch_size = 1024
    c.evaluation.capture_images = 1024
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-5 * c.batch_size / 256
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.1
    c.optimizer.warmup = "40 epochs"
    c.evaluate_every = "20 epochs"
    c.checkpoint_every = "5 epochs"
    return c
