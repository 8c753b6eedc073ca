"""CRATE-MAE-B on ImageNet-1k, the recipe of 2404.02446: masked autoencoding without labels.

    python -m crate_jax.main --config=configs/mae_b.py --workdir=DIR --config.data.root=IMAGES

IMAGES as for configs/imagenet_b.py; the labels are not looked at. Features are judged by `python -m
crate_jax.probe`. Not run by this project, which has no ImageNet. Hardware: calculated, not
measured, 7.1 hours on 8 H100 at 35 % of peak bf16, if the input keeps up (68.7 GFLOP an image,
1,281,167 images, 800 epochs).

`configs/mae_b.py:size=s16` takes another size: t16, s16, b16 or l16.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, size="b16")
    return recipes.masked_autoencoder(a.size)
