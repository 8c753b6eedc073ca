"""Fine-tuning by a recipe from a file of somebody else: head replaced, positions resampled."""

import numpy as np
import pytest

from crate_jax import config
from crate_jax.convert import run_directory
from crate_jax.convert.__main__ import main
from crate_jax.models.positions import resize_positions
from crate_jax.training import loop
from tests.end_to_end import runs

REFERENCE = runs.ROOT / "tests" / "reference" / "crate_mini.npz"


def finetune(images, source, **changes):
    """configs/finetune.py:flowers for the small network of the reference, on folders of JPEGs."""
    c = config.load("finetune", "flowers")
    c.steps, c.epochs, c.batch_size, c.init_from = 1, None, 8, str(source)
    c.model.patch_size, c.model.dim, c.model.heads, c.model.depth = 8, 48, 4, 3
    c.model.image_size, c.data.image_size, c.model.classes = (48, 48), 48, 3
    c.data.name, c.data.root, c.data.resize, c.data.workers = "folder", str(images), 54, 0
    c.evaluation.batch_size, c.evaluation.capture_images = 8, 0
    c.optimizer.learning_rate, c.optimizer.warmup, c.checkpoint_every = 0.0, "0 steps", "1 steps"
    c.tensorboard = c.report = False
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The authors' state dict in the form that `python -m crate_jax.convert` writes."""
    target = tmp_path_factory.mktemp("converted") / "mini.safetensors"
    assert main([f"--source={REFERENCE}", "--heads=4", f"--target={target}"]) == 0
    return target


def test_starts_from_a_converted_file(images, converted, tmp_path, capsys):
    assert loop.train(finetune(images, converted), tmp_path) == 0
    assert runs.metrics(tmp_path)[-1]["val/images"] == 12
    with np.load(REFERENCE) as file:
        theirs = {k.removeprefix("state_dict/"): file[k] for k in file.files}
    ours, model, _ = run_directory.read(tmp_path)
    assert (model.classes, model.image_size) == (3, (48, 48))
    for layer in range(3):  # at a rate of 0, bit for bit
        np.testing.assert_array_equal(
            ours["layers"][layer]["attention"]["subspace"]["kernel"],
            theirs[f"transformer.layers.{layer}.0.fn.qkv.weight"].T,
        )
    np.testing.assert_array_equal(
        ours["positions"],
        resize_positions(theirs["pos_embedding"], (4, 4), (6, 6), model.positions),
    )
    assert ours["head"]["kernel"].shape == (48, 3)


def test_another_network_is_named(images, converted, tmp_path):
    with pytest.raises(ValueError, match=r"depth: 3 there.*, 2 here"):
        loop.train(finetune(images, converted, **{"model.depth": 2}), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="found no CHECKPOINT"):
        loop.train(finetune(images, "CHECKPOINT"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
