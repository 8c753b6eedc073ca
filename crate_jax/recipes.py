"""The papers' training recipes, shared by the files in configs/.

Each function returns a full config; a config file picks one, gives it a size and says in its
docstring the command, the hardware and the published score.
"""

import dataclasses

import ml_collections

from crate_jax import config as configuration
from crate_jax import data as datasets
from crate_jax.convert import checkpoints


def imagenet1k(
    size: str, family: str = "crate", attention: str = "mssa", nonlinearity: str = "ista"
) -> ml_collections.ConfigDict:
    """ImageNet-1k from scratch (2306.01129, section 3.1 and appendix; its public code).

    Lion at 2.4e-4, decay 0.5 on every parameter, batch 2048, 150 epochs with 5 of warm-up, cosine,
    label smoothing 0.1, random resized crop and flip; evaluation resizes to 256 and crops 224.

    Deviations: warm-up and cosine run by step; the public code changes the rate once an epoch by
    min((epoch + 1) / 20, cosine), which is neither the paper's 5 epochs nor smooth.

    Args:
        size: "t16", "s16", "b16" or "l16".
        family: "crate", or "vit" for the network of the same size name.
        attention: of CRATE: "mssa", or the ablation "mhsa".
        nonlinearity: of CRATE: "ista", or the ablations "ista-soft-threshold" and "mlp".
    """
    c = configuration.default()
    c.epochs = 150.0
    c.batch_size = 2048
    c.dtype = "bfloat16"
    c.label_smoothing = 0.1
    c.model = _model(size, family, attention, nonlinearity)
    _folders(c)
    _lion(c, learning_rate=2.4e-4, weight_decay=0.5, warmup="5 epochs")
    return c


def imagenet21k(
    size: str, family: str = "crate", attention: str = "mssa", nonlinearity: str = "ista"
) -> ml_collections.ConfigDict:
    """ImageNet-21k from scratch (2308.16271, section 4.1): the models whose attention segments.

    Lion at 9.6e-5, decay 0.05, batch 4096, 90 epochs, 224 px, resize, centre crop and flip, softmax
    cross-entropy; the same for CRATE and ViT.

    Open in the paper, and our choice: 5 epochs of warm-up, cosine to zero, no label smoothing.

    Args:
        size: "t8", "s8" or "b8"; the rest as for `imagenet1k`.
        family: "crate" or "vit".
        attention: of CRATE.
        nonlinearity: of CRATE.
    """
    c = configuration.default()
    c.epochs = 90.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = _model(size, family, attention, nonlinearity, classes=21841)
    _folders(c)
    c.data.crop = "centre"
    c.data.val_fraction = 0.01  # ImageNet-21k has no validation set
    _lion(c, learning_rate=9.6e-5, weight_decay=0.05, warmup="5 epochs")
    return c


def alpha(size: str) -> ml_collections.ConfigDict:
    """CRATE-alpha on ImageNet-21k (2405.20299, its public code).

    Adam with b2 0.95 and decoupled decay 0.1 on kernels only, so not on D and D1; peak 8e-4 after
    10 epochs of warm-up, cosine to 1e-6, clipping at 1; batch 4096, 91 epochs; Inception crop from
    8 % of the area, flip, mixup Beta(0.8, 0.8) and cutmix Beta(1, 1), one of them for each batch.

    Open, and our choice: label smoothing, none.

    Args:
        size: "b32", "b16", "b8", "l32", "l14", "l8" or "h14".
    """
    c = configuration.default()
    c.epochs = 91.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = configuration.model(f"crate-alpha-{size}", classes=19167)
    _folders(c)
    c.data.val_fraction = 0.01
    c.mixup, c.cutmix = 0.8, 1.0
    _adamw(c, learning_rate=8e-4, weight_decay=0.1, warmup="10 epochs", b2=0.95)
    c.optimizer.end_factor = 1e-6 / 8e-4
    c.optimizer.decay_mask = "kernel"
    c.optimizer.clip_norm = 1.0
    return c


def masked_autoencoder(size: str) -> ml_collections.ConfigDict:
    """CRATE-MAE on ImageNet-1k (2404.02446, section 4.1): no labels, 75 % of the patches hidden.

    AdamW, base rate 3e-5, decay 0.1, batch 4096, 800 epochs, 40 of warm-up, cosine.

    Open, and our choice, MAE's own (2111.06377, appendix A.1): the rate is the base rate times
    batch / 256, b2 0.95, crops from 20 % of the area, flip; the target is the patch's pixels,
    standardised like the image, not patch by patch (the public code's loss).

    Args:
        size: "t16", "s16", "b16" or "l16".
    """
    c = configuration.default()
    c.epochs = 800.0
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.model = configuration.model(f"crate-mae-{size}")
    _folders(c)
    c.data.crop_scale = (0.2, 1.0)
    c.evaluate_every = "10 epochs"
    _adamw(c, learning_rate=3e-5 * 4096 / 256, weight_decay=0.1, warmup="40 epochs", b2=0.95)
    return c


# Of fine-tuning: TFDS name, classes, epochs (ours), and the splits of the usual protocol.
FINETUNE_DATASETS = {
    "imagenet": ("", 1000, 20.0, "", ""),
    "cifar10": ("cifar10", 10, 50.0, "train", "test"),
    "cifar100": ("cifar100", 100, 50.0, "train", "test"),
    "flowers": ("oxford_flowers102", 102, 200.0, "train+validation", "test"),
    "pets": ("oxford_iiit_pet", 37, 200.0, "train", "test"),
}


def finetune(dataset: str, model: str = "crate-b8") -> ml_collections.ConfigDict:
    """Fine-tuning of a pretrained network at 224 px (2308.16271, appendix; 2306.01129).

    AdamW at 5e-5, decay 0.01, batch 256, or 128 for the base size. `config.init_from` names the
    checkpoint; its head is replaced by a new one, its positions are resampled.

    CRATE-alpha's recipe for ImageNet-1k [its code]: 1.6e-4, RandAugment(2, 9), label smoothing 0.1;
    taken for every data set when `model` is one of its sizes.

    Open in the papers, and our choice: the epochs (20 on ImageNet, 50 on CIFAR, 200 on Flowers and
    Pets), a tenth of them warm-up, cosine, Inception crop and flip.

    Args:
        dataset: a key of `FINETUNE_DATASETS`; "imagenet" reads class folders, the others what TFDS
            has prepared.
        model: a named size of CRATE, CRATE-alpha or ViT.
    """
    configuration.choices("dataset", dataset, tuple(FINETUNE_DATASETS))
    name, classes, epochs, train, val = FINETUNE_DATASETS[dataset]
    c = configuration.default()
    c.epochs = epochs
    c.batch_size = 128 if "-b" in model else 256
    c.dtype = "bfloat16"
    c.model = configuration.model(model, classes=classes)
    c.init_from = "CHECKPOINT"
    _folders(c)
    if name:
        c.data.name, c.data.dataset = "tfds", name
        c.data.train_split, c.data.val_split = train, val
    rate, decay = (1.6e-4, 0.1) if "alpha" in model else (5e-5, 0.01)
    _adamw(c, learning_rate=rate, weight_decay=decay, warmup=f"{epochs / 10:g} epochs", b2=0.999)
    if "alpha" in model:
        c.label_smoothing = 0.1
        c.data.randaugment_layers = 2
    return c


def finetune_folder(
    root: str,
    checkpoint: str,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.0,
    epochs: float = 20.0,
    batch_size: int = 64,
    learning_rate: float = 5e-5,
) -> ml_collections.ConfigDict:
    """Fine-tuning of any checkpoint on a folder of class folders, all weights, a new head.

    AdamW and decay 0.01 as in 2308.16271; epochs, batch and the tenth of the epochs that is
    warm-up are ours. `config.model` is the checkpoint's, for the folder's classes.

    Args:
        root: holds train/CLASS/* and val/CLASS/*, or CLASS/*.
        checkpoint: a run's directory, or a converted file. One of PyTorch does not tell its heads:
            convert it first.
        image_size: px, a multiple of the patch; None for the checkpoint's own.
        val_fraction: of every class, held out where there is no val folder.
        epochs: passes over the folder.
        batch_size: images a step.
        learning_rate: peak. The papers' 5e-5 is for networks that saw millions of images.

    Raises:
        ValueError: a folder or a checkpoint that cannot be used; says why.
    """
    network = checkpoints.read(checkpoint, drop_head=True).config
    size = image_size or network.image_size[0]
    c = configuration.default()
    c.epochs, c.batch_size = epochs, batch_size
    c.init_from = str(checkpoint)
    c.data.name, c.data.root, c.data.val_fraction = "folder", str(root), val_fraction
    c.data.image_size, c.data.resize = size, round(size * 256 / 224)
    classes = datasets.source(c.data, "train").num_classes
    network = dataclasses.replace(network, image_size=(size, size), classes=classes)
    c.model = configuration.model_section(network)
    c.evaluation.batch_size = batch_size
    warmup = f"{epochs / 10:g} epochs"
    _adamw(c, learning_rate=learning_rate, weight_decay=0.01, warmup=warmup, b2=0.999)
    return c


def _model(
    size: str, family: str, attention: str, nonlinearity: str, **overrides: int
) -> ml_collections.ConfigDict:
    configuration.choices("config argument model", family, ("crate", "vit"))
    ablation = {"attention": attention, "nonlinearity": nonlinearity}
    if family == "crate":
        return configuration.model(f"crate-{size}", **ablation, **overrides)
    if ablation != {"attention": "mssa", "nonlinearity": "ista"}:
        raise ValueError("config argument: attention and nonlinearity belong to model=crate")
    return configuration.model(f"vit-{size}", **overrides)


def _folders(c: ml_collections.ConfigDict) -> None:
    c.data.name = "folder"
    c.data.image_size = 224
    c.data.workers = 16
    c.evaluation.batch_size = 1024
    c.evaluation.capture_images = 1024  # coding rate and sparsity of every layer
    c.log_every = "50 steps"
    c.checkpoint_every = "1 epochs"


def _lion(
    c: ml_collections.ConfigDict, *, learning_rate: float, weight_decay: float, warmup: str
) -> None:
    c.optimizer.name = "lion"
    c.optimizer.learning_rate = learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.weight_decay = weight_decay
    c.optimizer.warmup = warmup


def _adamw(
    c: ml_collections.ConfigDict,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup: str,
    b2: float,
) -> None:
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = b2
    c.optimizer.weight_decay = weight_decay
    c.optimizer.warmup = warmup
