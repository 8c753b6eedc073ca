"""CRATE on ImageNet-1k from scratch, the recipe of 2306.01129 (section 3.1, appendix, its code).

    python -m crate_jax.main --config=configs/imagenet.py:size=b --workdir=DIR \\
        --config.data.root=IMAGES

IMAGES holds train/CLASS/*.JPEG and val/CLASS/*.JPEG; to prepare it from the official archives:
`python -m crate_jax.data.prepare imagenet --tars=DIR --out=IMAGES`. A dataset prepared by TFDS:
`--config.data.name=tfds --config.data.dataset=imagenet2012 --config.data.data_dir=DIR`.

Published top-1 after 150 epochs, and hours on 8 H100, calculated at 35 % of peak bf16 if the input
keeps up (1,281,167 x 150 images times the operations an image that a dry run prints). Not run by
this project, which has no ImageNet.

    size   parameters   top-1                  hours
    t       6.09 M      66.7 % (ViT-T 71.5)    0.21
    s      13.12 M      69.2 % (ViT-S 72.4)    0.44
    b      22.80 M      70.8 %                 0.74
    l      77.64 M      71.3 %                 2.5

Lion at 2.4e-4, decay 0.5 on every parameter, batch 2048, 150 epochs with 5 of warm-up, cosine,
label smoothing 0.1, random resized crop and flip; evaluation resizes to 256 and crops 224.
Deviation: warm-up and cosine run by step; the public code changes the rate once an epoch by
min((epoch + 1) / 20, cosine), which is neither the paper's 5 epochs nor smooth.

Twins by argument: `:size=s,model=vit` is the ViT of the same name; `:attention=mhsa`,
`:nonlinearity=mlp` and `:nonlinearity=ista-soft-threshold` are the ablations.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, size="b", model="crate", attention="mssa", nonlinearity="ista")
    config.choices("config argument size", a.size, ("t", "s", "b", "l"))
    c = config.default()
    c.epochs = 150.0
    c.batch_size = 2048
    c.dtype = "bfloat16"
    c.label_smoothing = 0.1
    c.model = recipes.network(f"{a.size}16", a.model, a.attention, a.nonlinearity)
    recipes.folders(c)
    recipes.lion(c, learning_rate=2.4e-4, weight_decay=0.5, warmup="5 epochs")
    return c
