"""Runs of ours: out to PyTorch's names and back with identical logits."""

import shutil

import numpy as np
import pytest

import crate_jax
from crate_jax.convert import checkpoints
from crate_jax.convert.run_directory import complete_steps


def test_loads_the_newest_step_and_any_other(run_directory):
    newest, older = crate_jax.load(run_directory), crate_jax.load(run_directory, step=10)
    assert newest.config.image_size == (16, 32)
    assert newest.config.positions == "dino"
    assert "step 20" in checkpoints.read(run_directory).notes
    assert not np.array_equal(newest.cls_token[...], older.cls_token[...])
    with pytest.raises(ValueError, match=r"expected one of the steps \[10, 20\], got 30"):
        crate_jax.load(run_directory, step=30)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pth.tar"])
def test_out_and_back_with_identical_logits(suffix, run_directory, tmp_path, run, request):
    torch_file = suffix.startswith(".pth")
    if torch_file:
        request.getfixturevalue("torch")
    path = tmp_path / f"x{suffix}"
    checkpoints.save(checkpoints.read(run_directory), path)
    declared = {"heads": 3, "image_size": (16, 32), "positions": "dino"} if torch_file else {}
    images = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    before, _ = run(crate_jax.load(run_directory), images)
    after, _ = run(crate_jax.load(path, **declared), images)
    np.testing.assert_array_equal(before, after)


def test_declarations_are_the_runs(run_directory):
    with pytest.raises(ValueError, match="heads: declared as 4, but the run's config says 3"):
        crate_jax.load(run_directory, heads=4)
    assert crate_jax.load(run_directory, heads=3, positions="size").config.positions == "size"
    resized = crate_jax.load(run_directory, image_size=(32, 32))
    assert resized.positions[...].shape == (1, 17, 24)
    with pytest.raises(ValueError, match=r"image_size: expected an integer or .*, got '88'"):
        crate_jax.load(run_directory, image_size="88")  # not (8, 8)
    with pytest.raises(ValueError, match="published: expected a file, got the directory"):
        crate_jax.load(run_directory, published="crate-demo")


def test_a_home_folder_is_found(run_directory, monkeypatch):
    """Shells leave the ~ of --checkpoint=~/run as it is."""
    monkeypatch.setenv("HOME", str(run_directory.parent))
    found = checkpoints.read(f"~/{run_directory.name}")
    assert found.source == f"{run_directory} at step 20"


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="found no checkpoints/STEP"):
        crate_jax.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '{"model": 3}',
        '{"steps": 3}',
        '{"model": {"family": "crate", "dim": "wide"}}',
        '{"model": {"family": "crate", "mean": 3}}',
        '{"model": {"family": []}}',
        "[" * 100_000,
        "not JSON",
        "\\xff",
    ],
)
def test_a_config_that_is_something_else_is_one_line(text, tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json: expected the config of a run") as raised:
        crate_jax.load(tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_step_that_cannot_be_read_is_passed_over(run_directory, tmp_path):
    """Not sealed, as where its process was killed, and half of its arrays are gone."""
    run = shutil.copytree(run_directory, tmp_path / "run")
    step = run / "checkpoints" / "20"
    (step / "manifest.json").unlink()
    shutil.rmtree(step / "params" / "d", ignore_errors=True)
    (step / "params" / "_METADATA").write_text("{")
    assert "step 10" in checkpoints.read(run).notes
    with pytest.raises(ValueError, match="no whole checkpoint: step 20") as raised:
        crate_jax.load(run, step=20)
    assert len(str(raised.value).splitlines()) == 1


def test_steps_are_folders_that_are_named_as_numbers(tmp_path):
    for name in ("8", "10", "08", "\u00b2", "\u0663", "-1", "9.orbax-checkpoint-tmp", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "7").touch()
    assert complete_steps(tmp_path) == [8, 10]
