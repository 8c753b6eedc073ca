"""CRATE-B/16 on ImageNet-1k: `configs/imagenet.py` at its default size, which it describes.

    python -m crate_jax.main --config=configs/imagenet_b.py --workdir=DIR --config.data.root=IMAGES

Published: top-1 70.8 % after 150 epochs. Not run by this project. Hardware: calculated, 0.74 hours
on 8 H100. The other sizes are `configs/imagenet.py:size=t` and so on.
"""

from crate_jax import config


def get_config(arg=None):
    """The config; takes the arguments of `configs/imagenet.py`."""
    return config.load("imagenet", arg)
