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


def source(config: Mapping[str, Any], split: str) -> "Source":
    """The dataset that `config.data` describes.

    Args:
        config: `config.data`; its keys are in `crate_jax.keys`.
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
        shown = options.pop("val_shows")
        if split != "train":
            options["shown"] = shown
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
    raise ValueError(f"config.data.name: expected one of {', '.join(NAMES)}, got {name!r}.{hint}")


def transform(config: Mapping[str, Any], split: str) -> "Transform | None":
    """What the loader applies to each image of `source(config, split)`; None: nothing.

    Training: crop, flip, RandAugment as configured; evaluation: resize and centre crop. Scenes have
    their size already and are never cropped.
    """
    from crate_jax.data import transforms

    composed = config["name"] == "scenes"
    size = config["image_size"]
    resize = config["resize"] or round(size * 256 / 224)
    if split != "train":
        return None if composed else transforms.EvalTransform(size, resize, config["resampling"])
    return transforms.TrainTransform(
        size,
        crop="none" if composed else config["crop"],
        scale=tuple(config["crop_scale"]),
        resize=resize,
        flip=config["flip"],
        randaugment_layers=config["randaugment_layers"],
        randaugment_magnitude=config["randaugment_magnitude"],
        fast_jpeg=config["fast_jpeg"],
    )
