"""Faults of checkpoints on a tree of three arrays; with whole runs in end_to_end/test_faults.py."""

import contextlib
import errno
import itertools
import json
import logging
import os
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.convert import run_directory
from crate_jax.training.checkpoint import CheckpointError, Checkpoints

POSITION, METADATA = {"next": 3}, {"class_names": ["cat", "dog"]}


def params(step):
    return {"a": jnp.full((4, 3), step, jnp.float32), "b": jnp.arange(50_000.0) + step}


def training(step):
    return {"step": jnp.array(step)}


def template():
    def abstract(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(abstract, (params(0), training(0)))


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, params(step), training(step), POSITION, METADATA)
    assert checkpoints.wait()


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    save(opened, 1, 2, 3)
    yield opened
    opened.close()


def assert_restored(checkpoints, step):
    restored = checkpoints.restore_latest(*template())
    assert restored.step == step
    jax.tree.map(np.testing.assert_array_equal, restored.params, params(step))
    jax.tree.map(np.testing.assert_array_equal, restored.training, training(step))
    assert (restored.input, restored.metadata) == (POSITION, METADATA)


def test_what_was_saved_is_restored(checkpoints, tmp_path):
    assert_restored(checkpoints, 3)
    with Closing(tmp_path) as another:
        assert_restored(another, 3)


class Closing(Checkpoints):
    """As a process that starts anew."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def test_nothing_there_is_no_error(tmp_path):
    with Closing(tmp_path) as empty:
        assert empty.restore_latest(*template()) is None
        assert empty.last_good() == "no checkpoint was saved"


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"), [(1, 0, [6]), (2, 0, [5, 6]), (2, 2, [2, 4, 5, 6])]
)
def test_how_many_stay(tmp_path, keep, keep_every, left):
    with Closing(tmp_path, keep, keep_every) as checkpoints:
        save(checkpoints, 1, 2, 3, 4, 5, 6)
        assert checkpoints.steps() == left
    with pytest.raises(ValueError, match="keep_checkpoints: expected at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(step):
    path = largest_file(step / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_file(step):
    largest_file(step / "training").unlink()


def halve(step):
    """As if the process was killed before the checkpoint was sealed and the disk lost a part."""
    (step / run_directory.MANIFEST).unlink()
    path = largest_file(step / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_item(step):
    shutil.rmtree(step / "input")


def garble_manifest(step):
    (step / run_directory.MANIFEST).write_text("[3]")


@pytest.mark.parametrize("damage", [flip_bit, lose_file, halve, lose_item, garble_manifest])
def test_a_damaged_one_gives_way_to_the_one_before(checkpoints, tmp_path, damage, caplog):
    damage(tmp_path / "checkpoints" / "3")
    assert_restored(checkpoints, 2)
    assert "checkpoint 3 is damaged" in caplog.text
    assert "moved to damaged_checkpoints/" in caplog.text
    save(checkpoints, 3)
    damage(tmp_path / "checkpoints" / "3")  # again: both are kept
    assert_restored(checkpoints, 2)
    assert {p.name for p in (tmp_path / "damaged_checkpoints").iterdir()} == {"3", "3-2"}


def test_one_that_was_not_sealed_is_used(checkpoints, tmp_path):
    (tmp_path / "checkpoints" / "3" / run_directory.MANIFEST).unlink()
    assert_restored(checkpoints, 3)


def test_a_half_written_one_is_passed_over_and_cleaned_up(checkpoints, tmp_path):
    checkpoints.close()
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    (tmp_path / "checkpoints" / "3").rename(half)
    shutil.rmtree(half / "training")
    with Closing(tmp_path) as again:
        assert_restored(again, 2)
        save(again, 3)
        assert not half.exists()
        assert_restored(again, 3)


def test_nothing_but_damaged_ones_is_an_error(checkpoints, tmp_path):
    for step in (1, 2, 3):
        flip_bit(tmp_path / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=r"all of \[1, 2, 3\] were damaged and moved to"):
        checkpoints.restore_latest(*template())


def fails(checkpoints, reason, last_good):
    """Saving step 4 fails in one line, at once; nothing is left that waits or speaks later."""
    begin, before = time.monotonic(), set(threading.enumerate())
    message = f"saving checkpoint 4 to .* failed: .*{reason}.*; {last_good}"
    with pytest.raises(CheckpointError, match=message) as error:
        save(checkpoints, 4)
    checkpoints.close()
    assert len(str(error.value).splitlines()) == 1
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert thread.daemon or not thread.is_alive(), thread
    assert time.monotonic() - begin < 10


def test_a_folder_that_cannot_be_made(checkpoints, tmp_path, caplog):
    directory, away = tmp_path / "checkpoints", tmp_path / "away"
    directory.rename(away)
    directory.write_text("a file")
    fails(checkpoints, "Not a directory", "no checkpoint was saved")
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
    directory.unlink()
    away.rename(directory)
    with Closing(tmp_path) as again:
        assert_restored(again, 3)
        save(again, 4)
        assert_restored(again, 4)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_workdir_that_went_away_is_not_made_anew(checkpoints, tmp_path, deleted):
    if deleted:
        shutil.rmtree(tmp_path)
    else:
        tmp_path.rename(tmp_path.with_name("moved"))
    fails(checkpoints, "was moved or deleted during the run", "no checkpoint was saved")
    assert not tmp_path.exists()


def test_a_full_disk(checkpoints):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
    try:
        fails(checkpoints, "", "the last good checkpoint is step 3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.steps() == [1, 2, 3]
    assert_restored(checkpoints, 3)


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_no_permission_and_no_inodes(checkpoints, monkeypatch, error):
    make = os.mkdir

    def refused(path, *args, **kwargs):
        if "tmp" in str(path) and "/4" in str(path):
            raise OSError(error, os.strerror(error), str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refused)
    fails(checkpoints, os.strerror(error), "the last good checkpoint is step 3")


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 86400])
def test_a_clock_that_jumps(checkpoints, monkeypatch, jump):
    """While a save is under way, whose time limits follow the clock."""
    real = time.time
    checkpoints.save(4, params(4), training(4), POSITION, METADATA)
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    if not checkpoints.wait():
        save(checkpoints, 4)
    assert_restored(checkpoints, 4)


@pytest.mark.parametrize("interrupted", [4, 7])
def test_a_step_is_saved_once_an_earlier_save_is_quiet(checkpoints, tmp_path, interrupted):
    """The threads of a save that failed, or was given up, go on to write beneath its folder."""
    checkpoints.close()
    left = tmp_path / "checkpoints" / f"{interrupted}.orbax-checkpoint-tmp" / "training"
    left.mkdir(parents=True)
    stop = time.monotonic() + 1.5

    def write():
        for number in itertools.takewhile(lambda _: time.monotonic() < stop, itertools.count()):
            with contextlib.suppress(FileNotFoundError):
                left.mkdir(parents=True, exist_ok=True)
                (left / str(number)).touch()

    writer = threading.Thread(target=write)
    with Closing(tmp_path) as again:
        writer.start()
        save(again, 4)
        writer.join()
        assert_restored(again, 4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "4"]


def test_leftovers_that_cannot_be_removed_are_named(checkpoints, tmp_path, monkeypatch):
    checkpoints.close()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr("crate_jax.training.checkpoint._PATIENCE", 0.3)
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    with (
        Closing(tmp_path) as again,
        pytest.raises(CheckpointError, match=r"5\.orbax-checkpoint-tmp .* cannot be removed"),
    ):
        again.save(4, params(4), training(4), POSITION, METADATA)


def test_parameters_that_are_not_finite_are_not_saved(checkpoints):
    bad = params(4)
    bad["b"] = bad["b"].at[7].set(jnp.inf)
    with pytest.raises(FloatingPointError, match=r"at step 4: b .*last good checkpoint is step 3"):
        checkpoints.save(4, bad, training(4), POSITION, METADATA)
    assert checkpoints.steps() == [1, 2, 3]


def test_every_file_is_in_the_manifest(checkpoints, tmp_path):
    step = tmp_path / "checkpoints" / "3"
    sums = json.loads((step / run_directory.MANIFEST).read_text())
    files = {p.relative_to(step).as_posix() for p in step.rglob("*") if p.is_file()}
    assert set(sums) == files - {run_directory.MANIFEST}
    assert {len(value) for value in sums.values()} == {64}
