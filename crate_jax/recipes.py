"""What the papers' training recipes share, which are the files in configs/, and one more recipe."""

import dataclasses

import ml_collections

from crate_jax import config, data
from crate_jax.convert import checkpoints


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
    c = config.default()
    c.epochs, c.batch_size = epochs, batch_size
    c.init_from = str(checkpoint)
    c.data.name, c.data.root, c.data.val_fraction = "folder", str(root), val_fraction
    c.data.image_size = size
    classes = data.source(c.data, "train").num_classes
    network = dataclasses.replace(network, image_size=(size, size), classes=classes)
    c.model = config.model_section(network)
    c.evaluation.batch_size = batch_size
    warmup = f"{epochs / 10:g} epochs"
    adamw(c, learning_rate=learning_rate, weight_decay=0.01, warmup=warmup, b2=0.999)
    return c


def network(
    size: str, family: str, attention: str, nonlinearity: str, **overrides: int
) -> ml_collections.ConfigDict:
    """`config.model` of a CRATE or of its twin: the ViT of the same size, or an ablation.

    Args:
        size: such as "b16".
        family: "crate" or "vit".
        attention: of CRATE: "mssa", or the ablation "mhsa".
        nonlinearity: of CRATE: "ista", or the ablations "ista-soft-threshold" and "mlp".
        **overrides: other fields of the network's config.

    Raises:
        ValueError: for another value, or an ablation of a ViT.
    """
    config.choices("config argument model", family, ("crate", "vit"))
    ablation = {"attention": attention, "nonlinearity": nonlinearity}
    if family == "crate":
        return config.model(f"crate-{size}", **ablation, **overrides)
    if ablation != {"attention": "mssa", "nonlinearity": "ista"}:
        raise ValueError("config argument: attention and nonlinearity belong to model=crate")
    return config.model(f"vit-{size}", **overrides)


def folders(c: ml_collections.ConfigDict) -> None:
    """Data in class folders at 224 px, read by 16 processes, and evaluation at that size."""
    c.data.name = "folder"
    c.data.image_size = 224
    c.data.workers = 16
    c.evaluation.batch_size = 1024
    c.evaluation.capture_images = 1024  # coding rate and sparsity of every layer
    c.log_every = "50 steps"
    c.checkpoint_every = "1 epochs"


def lion(
    c: ml_collections.ConfigDict, *, learning_rate: float, weight_decay: float, warmup: str
) -> None:
    """Lion with the library's b1 0.9 and b2 0.99, and cosine."""
    c.optimizer.name = "lion"
    c.optimizer.learning_rate = learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.weight_decay = weight_decay
    c.optimizer.warmup = warmup


def adamw(
    c: ml_collections.ConfigDict,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup: str,
    b2: float,
) -> None:
    """AdamW with b1 0.9, and cosine."""
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = b2
    c.optimizer.weight_decay = weight_decay
    c.optimizer.warmup = warmup


def alpha_training(c: ml_collections.ConfigDict, *, learning_rate: float) -> None:
    """How CRATE-alpha's code trains, on ImageNet-21k and when fine-tuning (2405.20299) [code].

    AdamW with b2 0.95, decay 0.1 on kernels only, clipping at 1; batch 4096; 10 epochs of warm-up,
    cosine to 1e-6; mixup Beta(0.8, 0.8) or cutmix Beta(1, 1), each for half of the batches.
    """
    c.batch_size = 4096
    c.dtype = "bfloat16"
    c.mixup, c.cutmix, c.mixup_switch = 0.8, 1.0, 0.5
    adamw(c, learning_rate=learning_rate, weight_decay=0.1, warmup="10 epochs", b2=0.95)
    c.optimizer.end_factor = 1e-6 / learning_rate
    c.optimizer.decay_mask = "kernel"
    c.optimizer.clip_norm = 1.0
