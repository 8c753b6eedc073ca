"""CRATE-alpha-B on ImageNet-21k, the recipe of 2405.20299: an overcomplete dictionary and a skip.

    python -m crate_jax.main --config=configs/alpha_b.py --workdir=DIR --config.data.root=IMAGES

IMAGES holds CLASS/*.JPEG, one folder for each of the 19,167 classes of the processed version; a
hundredth of every class is held out.

Published, after fine-tuning on ImageNet-1k (configs/finetune_imagenet.py): B/32 76.5, B/16 81.2,
B/8 83.2 %. Not run by this project. Hardware: calculated, not measured, 20 hours for B/16 on 8 H100
at 35 % of peak bf16, if the input keeps up (155.7 GFLOP an image, 14.06 M images, 91 epochs).

`configs/alpha_b.py:patch=32` and `:patch=8` are the other patch sizes.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, patch=16)
    return recipes.alpha(f"b{a.patch}")
