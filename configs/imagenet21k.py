"""CRATE on ImageNet-21k from scratch, the recipe of 2308.16271: those whose attention segments.

    python -m crate_jax.main --config=configs/imagenet21k.py:size=b8 --workdir=DIR \\
        --config.data.root=IMAGES

IMAGES holds CLASS/*.JPEG, one folder for each of the 21,841 synsets; a hundredth of every class is
held out (ImageNet-21k has no validation set). Another number of classes: `--config.model.classes`.

Published: what emerges in its attention, and top-1 after fine-tuning (configs/finetune.py). Not run
by this project, which has no ImageNet. Hardware: calculated, not measured, 8.7 hours for S/8 and 26
for B/8 on 8 H100 at 35 % of peak bf16, if the input keeps up (68.6 and 203.8 GFLOP an image,
14.06 M images, 90 epochs).

Lion at 9.6e-5, decay 0.05, batch 4096, 90 epochs, 224 px, resize, centre crop and flip, softmax
cross-entropy; the same for CRATE and ViT (section 4.1). Open in the paper, and our choice: 5 epochs
of warm-up, cosine to zero, no label smoothing.

Sizes: t8, s8, b8. Twins by argument: `:size=s8,model=vit` is the ViT of the same name;
`:attention=mhsa`, `:nonlinearity=mlp` and `:nonlinearity=ista-soft-threshold` are the ablations of
section 4.3.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, size="b8", model="crate", attention="mssa", nonlinearity="ista")
    config.choices("config argument size", a.size, ("t8", "s8", "b8"))
    c = config.default()
    c.epochs = 90.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = recipes.network(a.size, a.model, a.attention, a.nonlinearity, classes=21841)
    recipes.folders(c)
    c.data.crop = "centre"
    c.data.val_fraction = 0.01
    recipes.lion(c, learning_rate=9.6e-5, weight_decay=0.05, warmup="5 epochs")
    return c
