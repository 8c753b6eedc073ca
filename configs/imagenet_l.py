"""CRATE-L/16 on ImageNet-1k, the recipe of 2306.01129: 77.64 M parameters.

    python -m crate_jax.main --config=configs/imagenet_l.py --workdir=DIR --config.data.root=IMAGES

IMAGES holds train/CLASS/*.JPEG and val/CLASS/*.JPEG; to prepare it from the official archives:
`python -m crate_jax.data.prepare imagenet --tars=DIR --out=IMAGES`. A dataset prepared by TFDS:
`--config.data.name=tfds --config.data.dataset=imagenet2012 --config.data.data_dir=DIR`.

Published: top-1 71.3 % after 150 epochs (no ViT-L in the same table). Not run by this project,
which has no ImageNet. Hardware: calculated, not measured, 2.5 hours on 8 H100 at 35 % of peak
bf16, if the input keeps up: that is 1,281,167 x 150 images times the operations an image that a
dry run prints.

Twins by argument: `configs/imagenet_l.py:model=vit` is the ViT of the same name;
`:attention=mhsa`, `:nonlinearity=mlp` and `:nonlinearity=ista-soft-threshold` are the ablations.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, model="crate", attention="mssa", nonlinearity="ista")
    return recipes.imagenet1k("l16", a.model, a.attention, a.nonlinearity)
