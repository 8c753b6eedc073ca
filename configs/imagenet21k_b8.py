"""CRATE-B/8 on ImageNet-21k, the recipe of 2308.16271: the largest of the segmentation study.

    python -m crate_jax.main --config=configs/imagenet21k_b8.py --workdir=DIR \\
        --config.data.root=IMAGES

IMAGES holds CLASS/*.JPEG, one folder for each of the 21,841 synsets; a hundredth of every class is
held out (ImageNet-21k has no validation set). Another number of classes: `--config.model.classes`.

Published: what emerges in its attention, and top-1 after fine-tuning (configs/finetune_*.py). Not
run by this project, which has no ImageNet. Hardware: calculated, not measured, 26 hours on 8 H100
at 35 % of peak bf16, if the input keeps up (203.8 GFLOP an image, 14.06 M images, 90 epochs).

Twins by argument: `:model=vit` is the ViT of the same name; `:attention=mhsa`, `:nonlinearity=mlp`
and `:nonlinearity=ista-soft-threshold` are the ablations of section 4.3.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, model="crate", attention="mssa", nonlinearity="ista")
    return recipes.imagenet21k("b8", a.model, a.attention, a.nonlinearity)
