"""The data of a run as the loop wants it: opened, checked against the model, in batches."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from crate_jax.config import Durations
from crate_jax.data import (
    Source,
    TrainIterator,
    Transform,
    eval_batches,
    source,
    train_iterator,
    transform,
)
from crate_jax.files import write_atomically
from crate_jax.models.base import ImageModelConfig
from crate_jax.training import distributed


@dataclasses.dataclass
class Data:
    """Training and held-out sources of a run, and how to make batches of them."""

    config: ml_collections.ConfigDict
    train: Source
    val: Source

    def transform(self, split: str) -> Transform | None:
        """What is done to each image of a split before it goes to the devices."""
        return transform(self.config.data, split)

    def batches(self) -> TrainIterator:
        """This process's part of the training batches, from the first; restorable."""
        return train_iterator(
            self.train,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            transform=self.transform("train"),
            workers=self.config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def source(self, split: str) -> Source:
        """Of "train" or "val"."""
        return self.train if split == "train" else self.val

    def once(self, split: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of a split's batches, once through, seen as in evaluation."""
        return eval_batches(
            self.source(split),
            batch_size=batch_size,
            transform=self.transform("val"),
            workers=self.config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def open_data(config: ml_collections.ConfigDict, model: ImageModelConfig) -> Data:
    """Opens both splits.

    Raises:
        ValueError: where data is missing, or does not fit the model: other class counts, an image
            size that the model does not expect.
    """
    data = Data(config, *(source(config.data, split) for split in ("train", "val")))
    classes = data.train.num_classes
    if model.classes and classes > model.classes:
        raise ValueError(
            f"model.classes: expected at least the {classes} classes of the data, got "
            f"{model.classes}; set config.model.classes={classes}"
        )
    size = (config.data.image_size,) * 2
    if size != model.image_size:
        raise ValueError(
            f"data.image_size: expected the model's {model.image_size[0]} x {model.image_size[1]}, "
            f"got {config.data.image_size}; set config.data.image_size and config.model.image_size "
            "to the same"
        )
    for split in ("train", "val"):
        data.transform(split)  # which checks its options
    return data


def data_line(data: Data, plan: Durations, batch_size: int) -> str:
    """The data in one line."""
    examples, held_out = len(data.train), len(data.val)
    epochs = plan.total * batch_size / examples
    return (
        f"data      {data.config.data.name}: {examples:,} training and {held_out:,} held-out "
        f"images, {data.train.num_classes} classes; {plan.total} steps of {batch_size}, "
        f"{epochs:.3g} epochs"
    )


def share_skipped(batches: TrainIterator, source: Source) -> None:
    """Every process learns which corrupt images the others met; all must call it together."""
    if getattr(source, "on_corrupt", "error") == "skip":
        batches.skipped = distributed.union(batches.skipped)


def list_skipped(batches: TrainIterator, source: Source, directory: pathlib.Path) -> dict[str, int]:
    """Counts the corrupt images met so far, and lists their paths in skipped_images.txt.

    Those of all processes; where there are any, which needs `config.data.on_corrupt="skip"`.
    """
    share_skipped(batches, source)
    if not batches.skipped:
        return {}
    if jax.process_index() == 0:
        _list_paths(directory / "skipped_images.txt", source, batches.skipped)
    return {"train/skipped_images": len(batches.skipped)}


def list_skipped_held_out(skipped: list[int], source: Source, directory: pathlib.Path) -> None:
    """Lists what an evaluation left out in skipped_held_out_images.txt; once for all processes."""
    if skipped and jax.process_index() == 0:
        _list_paths(directory / "skipped_held_out_images.txt", source, skipped)


def _list_paths(file: pathlib.Path, source: Source, indices: list[int]) -> None:
    write_atomically(file, os.fsencode("".join(f"{source.path(index)}\n" for index in indices)))


def pixels_and_labels(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a training batch goes to the devices."""
    return {"image": batch["image"], "label": batch["label"]}
