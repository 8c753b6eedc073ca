"""CRATE-MAE on ImageNet-1k, the recipe of 2404.02446: masked autoencoding without labels.

    python -m crate_jax.main --config=configs/mae.py:size=b --workdir=DIR --config.data.root=IMAGES

IMAGES as for configs/imagenet.py; the labels are not looked at. Features are judged by `python -m
crate_jax.probe`. Not run by this project, which has no ImageNet. Hardware: calculated, not
measured, 7.1 hours for B on 8 H100 at 35 % of peak bf16, if the input keeps up (68.7 GFLOP an
image, 1,281,167 images, 800 epochs). Sizes: t, s, b, l.

AdamW, base rate 3e-5, decay 0.1, batch 4096, 75 % of the patches hidden, 800 epochs, 40 of warm-up,
cosine (section 4.1). Open, and our choice, MAE's own (2111.06377, appendix A.1): the rate is the
base rate times batch / 256, b2 0.95, crops from 20 % of the area, flip; the target is the patch's
pixels, standardised like the image, not patch by patch (the public code's loss).
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, size="b")
    config.choices("config argument size", a.size, ("t", "s", "b", "l"))
    c = config.default()
    c.epochs = 800.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = config.model(f"crate-mae-{a.size}16")
    recipes.folders(c)
    c.data.crop_scale = (0.2, 1.0)
    c.evaluate_every = "10 epochs"
    rate = 3e-5 * 4096 / 256
    recipes.adamw(c, learning_rate=rate, weight_decay=0.1, warmup="40 epochs", b2=0.95)
    return c
