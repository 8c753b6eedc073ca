"""The papers' training recipes, shared by the files in configs/.

Each function returns a full config; a config file picks one, gives it a size and says in its
docstring the command, the hardware and the published score.
"""

import ml_collections

from crate_jax import config as configuration


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
