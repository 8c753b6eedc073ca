"""CRATE-alpha on ImageNet-21k (2405.20299, its code): an overcomplete dictionary and a skip.

    python -m crate_jax.main --config=configs/alpha.py:size=b,patch=16 --workdir=DIR \\
        --config.data.root=IMAGES

IMAGES holds CLASS/*.JPEG, one folder for each of the 19,167 classes of the processed version; a
hundredth of every class is held out.

Published, after fine-tuning on ImageNet-1k (configs/finetune.py:model=crate-alpha-b16): B/32 76.5,
B/16 81.2, B/8 83.2, L/32 80.2, L/14 83.9, L/8 85.1 %. Not run by this project. Hardware:
calculated, not measured, 20 hours for B/16 on 8 H100 at 35 % of peak bf16, if the input keeps up
(155.7 GFLOP an image, 14.06 M images, 91 epochs).

Adam with b2 0.95 and decoupled decay 0.1 on kernels only, so not on D and D1; peak 8e-4 after 10
epochs of warm-up, cosine to 1e-6, clipping at 1; batch 4096, 91 epochs; Inception crop from 8 % of
the area, flip, mixup Beta(0.8, 0.8) and cutmix Beta(1, 1), one of them for each batch. Open, and
our choice: label smoothing, none.

Sizes b (patch 32, 16, 8), l (32, 14, 8) and h (14).
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, size="b", patch=16)
    c = config.default()
    c.epochs = 91.0
    c.model = config.model(f"crate-alpha-{a.size}{a.patch}", classes=19167)
    recipes.folders(c)
    c.data.val_fraction = 0.01
    recipes.alpha_training(c, learning_rate=8e-4)
    return c
