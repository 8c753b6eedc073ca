"""Datasets that TFDS has prepared as array_record, read without TensorFlow."""

import os

import numpy as np

from crate_jax.data.decode import MAX_MEGAPIXELS, Encoded

_VAL_SPLITS = ("validation", "val", "test")


class TfdsSource:
    """Random-access source of a prepared TFDS dataset with features `image` and `label`.

    `source[i]` is a dict of `image` uint8[h, w, 3] (decoded at full size), `label` int32 and
    `index` int64; `encoded(i)` the same with an image that is not decoded yet. Other features are
    left out. Works for imagenet2012, cifar10, cifar100, oxford_flowers102, oxford_iiit_pet and any
    other of that form. TensorFlow is neither needed nor imported.

    Args:
        dataset: TFDS name, as "cifar10", "name/config" or "name:1.0.0"; without a version the
            newest that is prepared. Or the folder itself that holds `dataset_info.json`.
        split: "train" or "val" (also "test").
        data_dir: where the datasets lie; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        tfds_split: the split in TFDS's terms, slices included ("train[:90%]"); "": "train", or for
            val the first there is of validation, val and test.
        on_corrupt, max_megapixels: as of `folders.Folder`.

    Raises:
        ValueError: nothing prepared there, or not as array_record, or without image and label, or
            no such split; says how to prepare it.
    """

    has_masks = False

    def __init__(
        self,
        dataset: str,
        split: str,
        *,
        data_dir: str = "",
        tfds_split: str = "",
        on_corrupt: str = "error",
        max_megapixels: float = MAX_MEGAPIXELS,
    ):
        if split not in ("train", "val", "test"):
            raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"on_corrupt: expected 'error' or 'skip', got {on_corrupt!r}")
        self.dataset, self.on_corrupt = dataset, on_corrupt
        self.max_megapixels = max_megapixels
        self.folder = _find(dataset, data_dir)
        import tensorflow_datasets as tfds  # a second of import that only its users pay

        builder = self._open(self.folder)
        features = builder.info.features
        if not {"image", "label"} <= set(features):
            raise ValueError(
                f"{self.folder}: expected the features image and label, got {sorted(features)}; "
                "choose a dataset of images with labels"
            )
        self.split = tfds_split or self._default_split(split, builder.info.splits)
        label = features["label"]
        self.num_classes = label.num_classes
        self.class_names = tuple(label.names)
        # images stay encoded: ours by `decode`, others (such as masks) for good
        is_image = {name: isinstance(features[name], tfds.features.Image) for name in features}
        decoders = {name: tfds.decode.SkipDecoding() for name in features if is_image[name]}
        try:
            self._records = builder.as_data_source(split=self.split, decoders=decoders)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.folder}: expected a random-access format, got {error} "
                f"{_how_to_prepare(dataset)}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The example `index`, decoded at full size."""
        example = self.encoded(index)
        return example | {"image": example["image"].decode()}

    def encoded(self, index: int) -> dict:
        """The example `index` with its image as a `decode.Encoded`."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        record = self._records[index]
        return {
            "image": Encoded(bytes(record["image"]), self.path(index), self.max_megapixels),
            "label": np.int32(record["label"]),
            "index": np.int64(index),
        }

    def path(self, index: int) -> str:
        """A name for example `index`: the folder, the split and the number of the record."""
        return f"{self.folder} ({self.split}, record {index})"

    @staticmethod
    def _open(folder: str) -> "tfds.core.DatasetBuilder":  # noqa: F821
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(folder)

    def _default_split(self, split: str, available: dict) -> str:
        names = ("train",) if split == "train" else _VAL_SPLITS
        for name in names:
            if name in available:
                return name
        raise ValueError(
            f"{self.folder}: expected a split of {', '.join(names)}, got {sorted(available)}; name "
            "one with config.data.train_split or config.data.val_split"
        )


def _find(dataset: str, data_dir: str) -> str:
    """The folder of a prepared dataset that holds `dataset_info.json`."""
    if os.path.isfile(os.path.join(dataset, "dataset_info.json")):
        return dataset
    data_dir = os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    name, _, version = dataset.partition(":")
    folder = os.path.join(data_dir, name)
    if not version:
        versions = os.listdir(folder) if os.path.isdir(folder) else []
        prepared = [v for v in versions if os.path.isfile(f"{folder}/{v}/dataset_info.json")]
        version = max(prepared, key=_version_key, default="")
    folder = os.path.join(folder, version)
    if not os.path.isfile(os.path.join(folder, "dataset_info.json")):
        raise ValueError(
            f"data.dataset {dataset!r}: expected {data_dir}/{name}/VERSION/dataset_info.json "
            f"(NAME/CONFIG where the dataset has configs), got no such file. "
            f"{_how_to_prepare(dataset, data_dir)}"
        )
    return folder


def _how_to_prepare(dataset: str, data_dir: str = "DATA_DIR") -> str:
    if os.path.isdir(dataset):  # DATA_DIR/NAME/VERSION
        dataset = os.path.basename(os.path.dirname(os.path.abspath(dataset)))
    name = dataset.split("/")[0]
    return (
        "Prepare it, on any machine with TensorFlow, by: "
        f"tfds build {name} --file_format=array_record --data_dir={data_dir}; "
        "then set config.data.data_dir."
    )


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))
