import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from crate_jax import data
from crate_jax.config import default
from crate_jax.data import train_iterator
from crate_jax.data.tfds import TfdsSource
from crate_jax.data.transforms import TrainTransform


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Ten PNGs, a mask, two classes; encoded by us, because TFDS encodes with TensorFlow."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        features = {"image": image, "label": label, "segmentation_mask": image, "id": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for k in range(count):
            yield k, {"image": png(k), "label": k % 2, "segmentation_mask": png(0), "id": k}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    Tiny(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_reads_what_was_prepared(data_dir):
    source = TfdsSource("tiny", "train", data_dir=data_dir)
    assert (len(source), source.num_classes, source.class_names) == (10, 2, ("cat", "dog"))
    seen = set()
    for index in range(10):
        example = source[index]
        assert set(example) == {"image", "label", "index"}
        assert example["image"].shape == (9, 12, 3)
        value = int(example["image"][0, 0, 0])
        assert (example["image"] == value).all()
        assert example["label"] == value % 2
        assert example["label"].dtype == np.int32
        assert example["index"] == index
        seen.add(value)
    assert seen == set(range(10))
    with pytest.raises(IndexError):
        source[10]


def test_splits(data_dir):
    assert len(TfdsSource("tiny", "val", data_dir=data_dir)) == 4  # test, for want of validation
    assert len(TfdsSource("tiny", "train", data_dir=data_dir, tfds_split="train[:70%]")) == 7
    assert len(TfdsSource("tiny:1.2.0", "train", data_dir=data_dir)) == 10
    assert len(TfdsSource(f"{data_dir}/tiny/1.2.0", "train")) == 10
    with pytest.raises(ValueError, match="dev"):
        TfdsSource("tiny", "val", data_dir=data_dir, tfds_split="dev")


def test_data_dir_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    config = default().data.to_dict() | {"name": "tfds", "dataset": "tiny"}
    assert len(data.source(config, "train")) == 10


def test_trains_through_workers(data_dir):
    source = TfdsSource("tiny", "train", data_dir=data_dir)
    options = {"batch_size": 5, "seed": 0, "transform": TrainTransform(8)}
    with (
        train_iterator(source, **options) as here,
        train_iterator(source, workers=1, **options) as there,
    ):
        for _ in range(3):
            first, second = next(here), next(there)
            for name in first:
                np.testing.assert_array_equal(first[name], second[name])


def test_tensorflow_is_never_imported(data_dir):
    code = f"""
import sys
from crate_jax.data.tfds import TfdsSource
TfdsSource("tiny", "train", data_dir={data_dir!r})[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("dataset", ["imagenet2012", "tiny:2.0.0", "tiny/config"])
def test_what_is_not_prepared_says_how_to_prepare_it(data_dir, dataset):
    with pytest.raises(ValueError) as error:
        TfdsSource(dataset, "train", data_dir=data_dir)
    assert dataset in str(error.value)
    assert f"--file_format=array_record --data_dir={data_dir}" in str(error.value)


def test_other_file_formats_are_refused_with_the_command_that_helps(data_dir, tmp_path):
    """A dataset prepared without --file_format=array_record cannot be read at random."""
    source, folder = pathlib.Path(data_dir, "tiny", "1.2.0"), tmp_path / "tiny" / "1.2.0"
    folder.mkdir(parents=True)
    for path in source.iterdir():
        copy = folder / path.name.replace("array_record", "tfrecord")
        copy.write_bytes(path.read_bytes().replace(b'"array_record"', b'"tfrecord"'))
    with pytest.raises(ValueError) as error:
        TfdsSource("tiny", "train", data_dir=str(tmp_path))
    assert "expected a random-access format" in str(error.value)
    assert "tfds build tiny --file_format=array_record" in str(error.value)
    with pytest.raises(ValueError, match="tfds build tiny --file_format=array_record"):
        TfdsSource(str(folder), "train")


@pytest.mark.parametrize(
    "name", ["cifar10", "oxford_flowers102", "oxford_iiit_pet", "imagenet2012"]
)
def test_mock_data_of_the_named_datasets(name, tmp_path, monkeypatch):
    """Their own features and class names, with TFDS's mock data in place of records."""
    pytest.importorskip("tensorflow", reason="TFDS makes mock images with TensorFlow")
    with tfds.testing.mock_data(num_examples=3):
        builder = tfds.builder(name, data_dir=str(tmp_path))
        monkeypatch.setattr(TfdsSource, "_open", staticmethod(lambda folder: builder))
        monkeypatch.setattr("crate_jax.data.tfds._find", lambda dataset, data_dir: str(tmp_path))
        source = TfdsSource(name, "train", tfds_split="train")
        classes = {"cifar10": 10, "cifar100": 100, "oxford_flowers102": 102, "oxford_iiit_pet": 37}
        assert source.num_classes == classes.get(name, 1000)
        assert len(source.class_names) == source.num_classes
        assert len(source) == 3
        assert source[1]["image"].ndim == 3
        assert 0 <= source[1]["label"] < source.num_classes


def test_features_must_be_image_and_label(data_dir, tmp_path):
    folder = tmp_path / "other" / "1.0.0"
    folder.mkdir(parents=True)
    source = f"{data_dir}/tiny/1.2.0"
    for name in ("dataset_info.json", "features.json"):
        with open(f"{source}/{name}") as file:
            (folder / name).write_text(file.read().replace('"label"', '"kind"'))
    with pytest.raises(ValueError, match="expected the features image and label, got"):
        TfdsSource(str(folder), "train")
