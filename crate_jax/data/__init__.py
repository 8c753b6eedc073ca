"""Datasets, transforms and the input pipeline. Nothing here touches a JAX backend.

(`mixing.py`, which runs inside the training step, is the exception; it is imported by the step.)
"""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crate_jax.data.loader import (
        Source,
        TrainIterator,
        Transform,
        eval_batches,
        train_iterator,
    )

__all__ = [
    "Source",
    "TrainIterator",
    "Transform",
    "default_config",
    "eval_batches",
    "source",
    "train_iterator",
    "transform",
]


def __getattr__(name: str) -> Any:
    """What the loader has: imported when it is asked for, since Grain imports JAX."""
    if name in __all__:
        from crate_jax.data import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


NAMES = ("scenes", "folder", "tfds")


def default_config() -> dict[str, Any]:
    """The defaults of `config.data`; every key with its meaning."""
    return {
        "name": "scenes",  # scenes (embedded), folder (class folders) or tfds (array_record)
        "image_size": 32,  # px, side of the square images that the model gets
        "workers": 0,  # processes that read and decode; 0: a thread of the training process
        # folder
        "root": "",  # holds train/CLASS/* and val/CLASS/*, or CLASS/*
        "val_fraction": 0.0,  # of every class, held out where there is no val folder
        # tfds
        "dataset": "",  # TFDS name, such as imagenet2012 or name/config:1.0.0
        "data_dir": "",  # where TFDS keeps datasets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets
        "train_split": "",  # in TFDS's terms, such as train[:90%]; "": train
        "val_split": "",  # "": the first there is of validation, val, test
        # folder and tfds
        "on_corrupt": "error",  # error: stop at an image that cannot be decoded; skip: list it
        "max_megapixels": 179.0,  # a larger image counts as one that cannot be decoded
        "crop": "random",  # training: random (Inception crop), centre, or none (one size already)
        "crop_scale": (0.08, 1.0),  # area of the random crop, as a fraction of the image's
        "fast_jpeg": True,  # random crops: decoded faster, off by about 1.4 of 255 levels
        "resize": 256,  # px, short side before a centre crop
        "resampling": "bilinear",  # of that resize in evaluation: bilinear, bicubic, lanczos
        # training, all datasets
        "flip": True,  # mirror half of the images
        "randaugment_layers": 0,  # operations in a row; 0: none
        "randaugment_magnitude": 9.0,  # 0 to 10
        # scenes: see scenes.Scenes for the options that have its names
        "scenes": {
            "train_length": 10_000,  # scenes in an epoch
            "val_length": 2_000,
            "seed": 0,  # of the composition; another seed is another dataset of the same garments
            "objects": (1, 1),  # least and most garments
            "scale": (0.5, 0.75),  # side of a garment's frame, as a fraction of the image's
            "place": (0.0, 1.0),  # position in the free room; (0.5, 0.5) is the centre
            "saturation": (0.0, 0.8),  # of a garment's tint
            "brightness": (0.6, 1.0),  # of a garment's tint
            "zoom": (1.0, 6.0),  # photograph pixels per image pixel in the background
            "contrast": (0.4, 1.0),  # of the background's texture
            "distractors": (0, 0),  # least and most pieces of other photographs
        },
    }


def source(config: Mapping[str, Any], split: str) -> "Source":
    """The dataset that `config.data` describes.

    Args:
      config: the keys of `default_config`.
      split: "train" or "val".

    Returns:
      A `loader.Source`: `len`, `[i]`, `num_classes`, `class_names`, `has_masks`.

    Raises:
      ValueError: unknown name, or options or files that do not fit; says what was expected.
    """
    name = config["name"]
    if name == "scenes":
        from crate_jax.data import scenes

        options = dict(config["scenes"])
        lengths = {part: options.pop(f"{part}_length") for part in ("train", "val")}
        length = lengths["train" if split == "train" else "val"]
        return scenes.Scenes(split, image_size=config["image_size"], length=length, **options)
    if name == "folder":
        from crate_jax.data import folders

        return folders.Folder(
            config["root"],
            split,
            val_fraction=config["val_fraction"],
            on_corrupt=config["on_corrupt"],
            max_megapixels=config["max_megapixels"],
        )
    if name == "tfds":
        from crate_jax.data import tfds

        return tfds.TfdsSource(
            config["dataset"],
            split,
            data_dir=config["data_dir"],
            tfds_split=config["train_split" if split == "train" else "val_split"],
            on_corrupt=config["on_corrupt"],
            max_megapixels=config["max_megapixels"],
        )
    near = difflib.get_close_matches(str(name), NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"config.data.name must be one of {', '.join(NAMES)}, got {name!r}.{hint}")


def transform(config: Mapping[str, Any], split: str) -> "Transform | None":
    """What the loader applies to each image of `source(config, split)`; None: nothing.

    Training: crop, flip, RandAugment as configured; evaluation: resize and centre crop. Scenes have
    their size already and are never cropped.
    """
    from crate_jax.data import transforms

    composed = config["name"] == "scenes"
    if split != "train":
        if composed:
            return None
        return transforms.EvalTransform(
            config["image_size"], config["resize"], config["resampling"]
        )
    return transforms.TrainTransform(
        config["image_size"],
        crop="none" if composed else config["crop"],
        scale=tuple(config["crop_scale"]),
        resize=config["resize"],
        flip=config["flip"],
        randaugment_layers=config["randaugment_layers"],
        randaugment_magnitude=config["randaugment_magnitude"],
        fast_jpeg=config["fast_jpeg"],
    )
