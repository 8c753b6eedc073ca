import dataclasses

import numpy as np
import pytest

from crate_jax import data
from crate_jax.config import default
from crate_jax.data.scenes import Scenes
from crate_jax.data.transforms import TrainTransform


class Recorder(dict):
    """Remembers which keys were read."""

    def __init__(self, values, read):
        super().__init__(values)
        self.read = read

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def test_every_default_is_read():
    read = {"workers"}  # by the training loop
    for name in data.NAMES:
        config = Recorder(default().data.to_dict() | {"name": name}, read)
        for split in ("train", "val"):
            try:
                data.source(config, split)
            except ValueError:
                assert name != "scenes"  # the others have no data to read here
            data.transform(config, split)
    assert read == set(default().data.to_dict())


def test_the_defaults_of_scenes_are_those_of_the_class():
    options = default().data.to_dict()["scenes"]
    lengths = {options.pop("train_length"), options.pop("val_length")}
    assert lengths == {len(Scenes("train")), len(Scenes("val"))}
    options["shown"] = options.pop("val_shows")
    fields = {field.name: field.default for field in dataclasses.fields(Scenes)}
    assert options == {name: fields[name] for name in options}
    assert set(fields) - set(options) == {"split", "image_size", "length", "photographs"}


def test_a_config_dict_opens_scenes():
    config = default().data
    config.image_size = 64
    config.scenes.scale = [0.3, 0.4]  # as a command line may give it
    config.scenes.val_length = 50
    source = data.source(config, "val")
    assert (len(source), source.num_classes, source.has_masks) == (50, 100, True)
    assert source[3]["image"].shape == (64, 64, 3)
    assert data.transform(config, "val") is None
    transform = data.transform(config, "train")
    assert transform == TrainTransform(64, crop="none", resize=73, fast_jpeg=True)
    image = source[3]["image"]
    assert transform(image, np.random.default_rng(0)).shape == image.shape


def test_held_out_objects_are_shown_where_the_config_asks_for_them():
    config = default().data
    config.scenes.held_out, config.scenes.val_shows = "fox, bus", "held_out"
    train, val = data.source(config, "train"), data.source(config, "val")
    held_out = {train.class_names.index(name) for name in ("fox", "bus")}
    assert {int(val[i]["label"]) for i in range(20)} == held_out
    assert not held_out & {int(train[i]["label"]) for i in range(200)}
    assert train.num_classes == val.num_classes == 100


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"'folders'\. Did you mean 'folder'"):
        data.source(default().data.to_dict() | {"name": "folders"}, "train")
