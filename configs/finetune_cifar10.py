"""Fine-tuning on CIFAR-10 from a pretrained CRATE, the recipe of 2308.16271.

    python -m crate_jax.main --config=configs/finetune_cifar10.py --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.data_dir=DATA

CHECKPOINT is a run's directory or a file that `crate_jax.load` reads; DATA holds what TFDS
prepared: `tfds build cifar10 --file_format=array_record --data_dir=DATA` (TensorFlow is needed for
that alone).

Published top-1 from ImageNet-21k, CRATE-T/8, S/8, B/8: 94.1, 97.2, 98.1 %. Not run by this project.
Hardware: calculated, not measured, 0.41 hours on an H100 at 35 % of peak bf16 (203.7 GFLOP an
image, 50,000 images, 50 epochs).

`configs/finetune_cifar10.py:model=crate-s8` takes another size; any of `crate_jax.models.variants`.
"""

from crate_jax import config, recipes


def get_config(arg=None):
    """The config; see the module's docstring for the argument."""
    a = config.arguments(arg, model="crate-b8")
    return recipes.finetune("cifar10", a.model)
