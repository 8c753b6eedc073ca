"""Fine-tuning on ImageNet-1k from a pretrained CRATE, the recipe of 2308.16271.

    python -m crate_jax.main --config=configs/finetune_imagenet.py --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.root=IMAGES

CHECKPOINT is a run's directory or a file that `crate_jax.load` reads; IMAGES as for
configs/imagenet_b.py.

Published top-1 from ImageNet-21k, CRATE-T/8, S/8, B/8: 62.7, 74.2, 79.5 %. CRATE-alpha
(`:model=crate-alpha-b16`, with its own recipe) B/32, B/16, B/8, L/32, L/14, L/8: 76.5, 81.2, 83.2,
80.2, 83.9, 85.1 %. Not run by this project. Hardware: calculated, not measured, 0.52 hours on 8
H100 at 35 % of peak bf16, if the input keeps up (203.7 GFLOP an image, 1,281,167 images, 20
epochs).
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, model="crate-b8")
    return recipes.finetune("imagenet", a.model)
