"""configs/imagenet_b.py at a toy width on folders of JPEGs, and what goes with it."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from crate_jax import recipes
from crate_jax.config import resolve
from crate_jax.convert import run_directory
from crate_jax.models import variants
from crate_jax.training import inputs, loop, pretrained
from tests.end_to_end import pictures, runs


def imagenet_b(root, **changes):
    """The config file, its network made small; everything else is the recipe's."""
    spec = importlib.util.spec_from_file_location("b", runs.ROOT / "configs" / "imagenet_b.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.epochs, c.batch_size = 2.0, 8
    c.model.image_size, c.model.patch_size = (32, 32), 8
    c.model.dim, c.model.heads, c.model.depth = 24, 3, 1
    c.data.root, c.data.image_size, c.data.resize, c.data.workers = str(root), 32, 36, 0
    c.evaluation.batch_size, c.evaluation.capture_images = 8, 0
    c.optimizer.warmup, c.log_every, c.checkpoint_every = "1 steps", "1 steps", "3 steps"
    c.tensorboard = c.report = False
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (c[section] if section else c)[name] = value
    return c


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert loop.train(imagenet_b(images), workdir) == 0
    return workdir


def test_trains_on_jpegs(trained):
    lines = runs.metrics(trained)
    assert len(runs.losses(trained)) == 6  # two epochs of 24 images
    assert lines[-1]["val/images"] == 12
    assert 0 <= lines[-1]["val/top1"] <= lines[-1]["val/top5"] <= 1


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_without_images_stops_before_compiling(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.program, "make", None)  # nothing may get so far
    with pytest.raises(ValueError) as error:
        loop.train(imagenet_b(root), tmp_path / "run")
    text = str(error.value)
    assert "train/CLASS" in text
    assert "crate_jax.data.prepare imagenet --tars=DIR" in text
    assert "tfds build imagenet2012" in text
    assert not (tmp_path / "run").exists()
    if not root:
        assert "config.data.root: expected a folder of images, got nothing" in text


@pytest.fixture
def truncated(tmp_path):
    root = pictures.write(tmp_path / "images", train=4)
    bad = [root / "train" / "dog" / "001.jpg", root / "val" / "owl" / "002.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-300])
    return root, bad


def test_truncated_jpeg_stops_with_its_path(truncated, tmp_path):
    root, (bad, _) = truncated
    with pytest.raises(ValueError, match=str(bad)):
        loop.train(imagenet_b(root), tmp_path / "run")


def test_truncated_jpegs_are_skipped_counted_and_listed(truncated, tmp_path, capsys):
    root, (bad, bad_val) = truncated
    config = imagenet_b(root, data__on_corrupt="skip", epochs=3.0)
    assert loop.train(config, tmp_path / "run") == 0
    last = [line for line in runs.metrics(tmp_path / "run") if "train/loss" in line][-1]
    assert last["train/skipped_images"] == 1
    assert (tmp_path / "run" / "skipped_images.txt").read_text() == f"{bad}\n"
    final = runs.metrics(tmp_path / "run")[-1]
    assert (final["val/images"], final["val/skipped_images"]) == (11, 1)
    listed = (tmp_path / "run" / "skipped_held_out_images.txt").read_text()
    assert listed == f"{bad_val}\n"
    assert "1 corrupt images skipped" in capsys.readouterr().out


def test_dry_run_tries_everything_and_writes_nothing(images, tmp_path, capsys):
    config = imagenet_b(images, dry_run=True)
    assert loop.train(config, tmp_path / "run") == 0
    text = capsys.readouterr().out
    for words in (
        "parameters",
        "GFLOP an image",
        "mesh data 1 x fsdp 1",
        "a training batch of 8 x 32 x 32 x 3",
        "a held-out batch of 8 x 32 x 32 x 3",
        "loader    up to",
        "compiled  the training step and the evaluation",
        "6, of which 1 warm-up; 3.0 an epoch",
        "GiB a device",
        f"writes to {tmp_path / 'run'}: config.json, metrics.jsonl, checkpoints/",
        "starts    from step 0",
    ):
        assert words in text, words
    assert not (tmp_path / "run").exists()


def test_dry_run_fails_where_the_run_would(images, truncated, trained, tmp_path):
    config = imagenet_b(images, dry_run=True, label_smoothing=0.3)
    with pytest.raises(ValueError, match=r"label_smoothing: 0.1 -> 0.3"):
        loop.train(config, trained)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="got a file at"):
        loop.train(imagenet_b(images, dry_run=True), tmp_path / "file" / "run")
    for path in (truncated[0] / "val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="expected a whole image"):
        loop.train(imagenet_b(truncated[0], dry_run=True), tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_starts_from_the_run_with_a_new_head(trained, tmp_path):
    """Three classes instead of 1000, at twice the image size: positions are resampled."""
    root = pictures.write(tmp_path / "images", train=4)
    config = imagenet_b(
        root,
        epochs=1.0,
        init_from=str(trained),
        model__image_size=(64, 64),
        model__classes=3,
        data__image_size=64,
        data__resize=72,
        optimizer__learning_rate=0.0,
    )
    assert loop.train(config, tmp_path / "run") == 0
    before, _, _ = run_directory.read(trained)
    after, model, _ = run_directory.read(tmp_path / "run")
    assert model.classes == 3
    for name in ("subspace", "output"):
        there, here = (p["layers"][0]["attention"][name]["kernel"] for p in (before, after))
        np.testing.assert_array_equal(here, there)
    assert before["positions"].shape == (1, 17, 24)
    assert after["positions"].shape == (1, 65, 24)
    np.testing.assert_array_equal(after["positions"][:, 0], before["positions"][:, 0])
    assert after["head"]["kernel"].shape == (24, 3)


def test_fine_tuning_names_what_does_not_fit(images, trained, tmp_path):
    config = resolve(imagenet_b(images, model__depth=2, model__dim=48))
    model = loop.variants.from_dict(config.model.to_dict())
    with pytest.raises(ValueError, match=r"dim: 24 there, 48 here .*; depth: 1 there, 2 here"):
        pretrained.read(str(trained), model)
    with pytest.raises(FileNotFoundError, match="found no CHECKPOINT"):
        pretrained.read("CHECKPOINT", model)


def test_profile_and_weights_and_biases(images, tmp_path, monkeypatch):
    logged, started = [], {}

    class Run:
        def define_metric(self, *args, **kwargs):
            pass

        def log(self, values):
            logged.append(values)

        def finish(self):
            started["finished"] = True

    def init(**kwargs):
        started.update(kwargs)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = imagenet_b(images, profile_steps=2, wandb="crate")
    assert loop.train(config, tmp_path) == 0
    assert started["project"] == "crate"
    assert started["finished"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [line["step"] for line in lines]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_weights_and_biases_absent_names_the_extra(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"crate-jax\[wandb\]"):
        loop.train(imagenet_b(images, wandb="crate"), tmp_path)


@pytest.mark.slow
def test_mixing_changes_the_loss_and_is_the_same_again(images, tmp_path):
    curves = [
        runs.losses_of(loop, imagenet_b(images, epochs=1.0, **changes), tmp_path / name)
        for name, changes in (
            ("plain", {}),
            ("mixed", {"mixup": 0.8, "cutmix": 1.0}),
            ("again", {"mixup": 0.8, "cutmix": 1.0}),
        )
    ]
    assert curves[1] == curves[2]
    assert curves[0] != curves[1]


def test_classes_in_the_data_must_fit_the_head(images):
    config = resolve(imagenet_b(images, model__classes=2))
    model = loop.variants.from_dict(config.model.to_dict())
    with pytest.raises(ValueError, match=r"at least the 3 classes of the data, got 2"):
        inputs.open_data(config, model)


def test_a_folder_is_fine_tuned_from_a_checkpoint_whatever_its_network(images, trained):
    config = resolve(recipes.finetune_folder(images, trained, image_size=48))
    network = variants.from_dict(config.model.to_dict())
    assert (network.dim, network.heads, network.depth, network.patch_size) == (24, 3, 1, 8)
    assert network.classes == config.model.classes == 3
    assert network.image_size == (48, 48) == (config.data.image_size,) * 2
    weights = pretrained.read(config.init_from, network)
    assert weights["positions"].shape == (1, 1 + 36, 24)
    assert not any(name.startswith("head") for name in weights)
    same = recipes.finetune_folder(images, trained)
    assert same.data.image_size == 32
    params, *_ = run_directory.read(trained)
    again = pretrained.read(same.init_from, variants.from_dict(same.model.to_dict()))
    np.testing.assert_array_equal(again["positions"], params["positions"])
