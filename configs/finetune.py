"""Fine-tuning of a pretrained network at 224 px, the recipes of 2308.16271 and 2405.20299.

    python -m crate_jax.main --config=configs/finetune.py:dataset=imagenet --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.root=IMAGES
    python -m crate_jax.main --config=configs/finetune.py:dataset=cifar10,model=crate-s8 \\
        --workdir=DIR --config.init_from=CHECKPOINT --config.data.data_dir=DATA

CHECKPOINT is a run's directory or a file that `crate_jax.load` reads; its head is replaced by a new
one, its positions are resampled. IMAGES as for configs/imagenet.py. DATA holds what TFDS prepared:
`tfds build NAME --file_format=array_record --data_dir=DATA` (TensorFlow is needed for that alone).

Published top-1 from ImageNet-21k, not run by this project; hours on an H100 (of ImageNet: on 8),
calculated at 35 % of peak bf16 for B/8 (203.7 GFLOP an image):

    dataset    NAME                CRATE-T/8, S/8, B/8    epochs   hours
    imagenet                       62.7  74.2  79.5 %       20     0.52
    cifar10    cifar10             94.1  97.2  98.1 %       50     0.41
    cifar100   cifar100            76.7  84.1  87.9 %       50     0.41
    flowers    oxford_flowers102   82.2  92.2  96.7 %      200     0.07
    pets       oxford_iiit_pet     77.0  86.4  90.7 %      200     0.12

AdamW at 5e-5, decay 0.01, batch 256, or 128 for the base size (2308.16271, appendix; 2306.01129).
Open in the papers, and our choice: the epochs, a tenth of them warm-up, cosine, Inception crop and
flip; Flowers is trained on train and validation together, 2,040 images.

CRATE-alpha (`:model=crate-alpha-b16`, any of its sizes) has the recipe of its code for ImageNet-1k
[code]: that of its pretraining (configs/alpha.py) for 91 epochs, with peak rate 1.6e-4, label
smoothing 0.1 and RandAugment(2, 9); B/32, B/16, B/8, L/32, L/14, L/8: 76.5, 81.2, 83.2, 80.2, 83.9,
85.1 %. It is taken for every dataset. Deviations: the first moment is float32, theirs bfloat16; the
patch embedding is that of the checkpoint, theirs starts anew, as the head; the norm before the head
starts anew, theirs is the checkpoint's; mixing draws once for a batch, theirs for each of 8 parts;
evaluation resizes bilinearly, theirs by area; contrast in RandAugment (see `rand_augment`).
"""

from crate_jax import config, recipes

# TFDS name, classes, epochs (ours), and the splits of the usual protocol.
DATASETS = {
    "imagenet": ("", 1000, 20.0, "", ""),
    "cifar10": ("cifar10", 10, 50.0, "train", "test"),
    "cifar100": ("cifar100", 100, 50.0, "train", "test"),
    "flowers": ("oxford_flowers102", 102, 200.0, "train+validation", "test"),
    "pets": ("oxford_iiit_pet", 37, 200.0, "train", "test"),
}


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, dataset="imagenet", model="crate-b8")
    config.choices("config argument dataset", a.dataset, tuple(DATASETS))
    name, classes, epochs, train, val = DATASETS[a.dataset]
    c = config.default()
    c.model = config.model(a.model, classes=classes)
    c.init_from = "CHECKPOINT"
    recipes.folders(c)
    if name:
        c.data.name, c.data.dataset = "tfds", name
        c.data.train_split, c.data.val_split = train, val
    if c.model.family == "crate_alpha":
        c.epochs = 91.0
        recipes.alpha_training(c, learning_rate=1.6e-4)
        c.label_smoothing = 0.1
        c.data.randaugment_layers = 2
        return c
    c.epochs = epochs
    c.batch_size = 128 if "-b" in a.model else 256
    c.dtype = "bfloat16"
    warmup = f"{epochs / 10:g} epochs"
    recipes.adamw(c, learning_rate=5e-5, weight_decay=0.01, warmup=warmup, b2=0.999)
    return c
