import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from crate_jax import data
from crate_jax.config import default
from crate_jax.data import eval_batches, train_iterator
from crate_jax.data.decode import CorruptImage
from crate_jax.data.folders import Folder
from crate_jax.data.transforms import EvalTransform, TrainTransform


def jpeg(value, size=(24, 20)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(root, files):
    for name, content in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


@pytest.fixture
def root(tmp_path):
    files = {}
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("zebra", "ant", "Ünïcode name")):
            for k in range(count):
                files[f"{split}/{name}/{k:02d}.JPEG"] = jpeg(60 * label + 10 * k)
    files["train/ant/notes.txt"] = b"not an image"
    files["train/.hidden/00.jpg"] = b""
    write(tmp_path, files)
    return str(tmp_path)


def test_lists_sorted_classes_and_files(root):
    source = Folder(root, "train")
    assert source.class_names == ("ant", "zebra", "Ünïcode name")
    assert len(source) == 15
    assert source.num_classes == 3
    paths = [source.path(i) for i in range(15)]
    assert paths == sorted(paths, key=lambda p: (source.class_names.index(p.split("/")[-2]), p))
    example = source[7]
    assert example["image"].shape == (24, 20, 3)
    assert example["image"].dtype == np.uint8
    assert abs(int(example["image"].mean()) - 20) <= 2  # the third zebra
    assert example["label"] == 1
    assert example["label"].dtype == np.int32
    assert example["index"] == 7
    assert len(Folder(root, "val")) == len(Folder(root, "validation")) == 6
    with pytest.raises(IndexError):
        source[15]


def test_trains_and_evaluates_through_the_loader(root):
    source = Folder(root, "train")
    transform = TrainTransform(16, randaugment_layers=1)
    options = {"batch_size": 6, "seed": 0, "transform": transform}
    with (
        train_iterator(source, **options) as here,
        train_iterator(source, workers=1, **options) as there,
    ):
        for _ in range(3):
            first, second = next(here), next(there)
            assert first["image"].shape == (6, 16, 16, 3)
            for name in first:
                np.testing.assert_array_equal(first[name], second[name])
    batches = list(eval_batches(Folder(root, "val"), batch_size=4, transform=EvalTransform(16, 18)))
    assert [batch["valid"].sum() for batch in batches] == [4, 2]
    assert batches[0]["image"].shape == (4, 16, 16, 3)


def test_the_listing_is_small_to_send_to_a_worker(tmp_path):
    write(tmp_path, {f"train/a/{k:05d}.jpg": b"" for k in range(2000)} | {"val/a/0.jpg": b""})
    assert len(pickle.dumps(Folder(str(tmp_path), "train"))) < 2000 * 20 + 2000


def test_one_folder_is_split_the_same_way_every_time(tmp_path):
    write(
        tmp_path,
        {f"{c}/{k}.png": b"" for c in "ab" for k in range(10)} | {"c/0.jpg": b"", "c/1.jpg": b""},
    )
    parts = [Folder(str(tmp_path), split, val_fraction=0.3) for split in ("train", "val")]
    names = [[source.path(i) for i in range(len(source))] for source in parts]
    assert not set(names[0]) & set(names[1])
    assert len(names[0]) + len(names[1]) == 22
    counts = [[sum(f"/{c}/" in n for n in part) for c in "abc"] for part in names]
    assert counts == [[7, 7, 1], [3, 3, 1]]
    again = Folder(str(tmp_path), "val", val_fraction=0.3)
    assert [again.path(i) for i in range(len(again))] == names[1]


def test_a_train_folder_alone_can_be_split(tmp_path):
    write(tmp_path, {f"train/a/{k}.jpg": b"" for k in range(4)})
    assert len(Folder(str(tmp_path), "val", val_fraction=0.25)) == 1
    with pytest.raises(ValueError, match="only the folder train"):
        Folder(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("files", "options", "found"),
    [
        (None, {}, "no such folder"),
        ({}, {}, "no folders"),
        ({"a/0.jpg": b""}, {}, "none called train or val"),
        ({"train/0.jpg": b"", "val/a/0.jpg": b""}, {}, r"1 images directly in .*train .0\.jpg"),
        ({"0.jpg": b"", "a/0.jpg": b""}, {"val_fraction": 0.5}, "1 images directly in"),
        ({"train/a/0.txt": b"", "val/a/0.jpg": b""}, {}, "no image .*train/a, .*1 other files"),
        ({"train/a/b/0.jpg": b"", "val/a/0.jpg": b""}, {}, "1 folders and 0 other files"),
        (
            {"train/a/0.jpg": b"", "train/b/0.jpg": b"", "val/a/0.jpg": b"", "val/c/0.jpg": b""},
            {},
            r"1 only in .*train .b., 1 only in .*val .c.",
        ),
        ({"train/.x/0": b"", "val/a/0.jpg": b""}, {}, "no class folders in .*train"),
        ({"train/a/0.jpg": b"", "val/a/0.jpg": b""}, {"val_fraction": 0.1}, "set 0"),
        ({"a/0.jpg": b""}, {"val_fraction": 0.5}, "single image in the class a"),
    ],
)
def test_a_mixed_up_folder_says_what_was_expected_and_found(tmp_path, files, options, found):
    root = tmp_path / "data"
    if files is not None:
        root.mkdir()
        write(root, files)
    with pytest.raises(ValueError) as error:
        Folder(str(root), "train", **options)
    message = str(error.value)
    assert error.match(f"(?s)Found: .*{found}")
    assert f"{root}/train/CLASS/*.jpg" in message
    assert "python -m crate_jax.data.prepare imagenet" in message
    assert "tfds build" in message


def test_a_truncated_jpeg_stops_with_its_path(root):
    path = os.path.join(root, "train", "zebra", "02.JPEG")
    with open(path, "r+b") as file:
        file.truncate(300)
    with (
        train_iterator(
            Folder(root, "train"), batch_size=15, seed=0, transform=TrainTransform(16), workers=1
        ) as iterator,
        pytest.raises(CorruptImage, match=r"zebra/02\.JPEG"),
    ):
        next(iterator)


def test_a_truncated_jpeg_can_be_skipped_and_is_listed(root):
    path = os.path.join(root, "train", "zebra", "02.JPEG")
    with open(path, "r+b") as file:
        file.truncate(0)
    source = Folder(root, "train", on_corrupt="skip")
    options = {"batch_size": 15, "transform": TrainTransform(16)}
    with train_iterator(source, seed=0, workers=1, **options) as iterator:
        batch = next(iterator)
        assert [source.path(i) for i in iterator.skipped] == [path]
    assert 7 not in batch["index"]
    (batch,) = eval_batches(source, batch_size=15, transform=EvalTransform(16, 16))
    assert list(batch["index"][~batch["valid"]]) == [7]


def test_what_is_no_image_file_is_skipped_and_listed(root):
    odd = [os.path.join(root, "train", "ant", name) for name in ("10.JPEG", "11.JPEG", "12.JPEG")]
    os.mkfifo(odd[0])
    os.symlink("/dev/zero", odd[1])
    with open(odd[2], "wb") as file:
        file.write(jpeg(0))
        file.truncate(20 * 10**9)
    source = Folder(root, "train", on_corrupt="skip")
    with train_iterator(
        source, batch_size=len(source), seed=0, transform=TrainTransform(16)
    ) as iterator:
        next(iterator)
        assert sorted(source.path(i) for i in iterator.skipped) == odd


def test_limit_in_megapixels_is_an_option(root):
    config = default().data.to_dict()
    config |= {"name": "folder", "root": root, "max_megapixels": 0.0004}
    with pytest.raises(CorruptImage, match=r"20 x 24 pixels, more than max_megapixels=0.0004"):
        data.source(config, "val")[0]


def test_a_vanished_file_is_named(root):
    source = Folder(root, "train", on_corrupt="skip")  # a missing file is not a corrupt one
    os.remove(source.path(3))
    with pytest.raises(FileNotFoundError, match=r"ant/03\.JPEG has vanished"):
        next(train_iterator(source, batch_size=15, seed=0, transform=TrainTransform(16)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split"),
        ({"on_corrupt": "ignore"}, "on_corrupt"),
        ({"val_fraction": 1.0}, "val_fraction"),
    ],
)
def test_options_out_of_range_are_named(root, options, message):
    with pytest.raises(ValueError, match=message):
        Folder(root, **{"split": "train"} | options)


def test_config_opens_the_folder(root):
    config = default().data.to_dict() | {
        "name": "folder",
        "root": root,
        "image_size": 16,
    }
    source = data.source(config, "val")
    assert source.class_names == ("ant", "zebra", "Ünïcode name")
    transform = data.transform(config, "val")
    assert transform(source[0]["image"], None).shape == (16, 16, 3)
    assert transform.resize == 18  # 256/224 of the image size, unless it is set
    assert data.transform(config | {"resize": 20}, "val").resize == 20
    uncropped = data.transform(config | {"crop": "none"}, "train")
    with pytest.raises(ValueError, match=r"crop=none: expected images of 16 x 16 px, got 40 x 48"):
        uncropped(np.zeros((40, 48, 3), np.uint8), np.random.default_rng(0))
