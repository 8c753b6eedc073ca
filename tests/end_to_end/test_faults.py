"""Every fault of docs/reliability.md, injected; what was lost is asserted.

In each test a run is struck by something in its middle, and then continued by the same command. It
must end with the figures of a run that nothing befell, and may repeat no more than the steps since
its last checkpoint.
"""

import json
import multiprocessing
import os
import pathlib
import re
import resource
import shutil
import signal
import time

import jax.numpy as jnp
import pytest

from crate_jax import data
from crate_jax.convert import run_directory
from crate_jax.data.processes import WorkerDied
from crate_jax.training import checkpoint, loop, metrics
from crate_jax.training import step as steps
from crate_jax.training.evaluation import Pass
from tests.end_to_end import pictures, runs

STEPS, EVERY = 12, 4  # steps of the run and between checkpoints


@pytest.fixture(scope="module")
def unharmed(images, tmp_path_factory):
    """The workdir of a run that nothing befell."""
    workdir = tmp_path_factory.mktemp("unharmed")
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    return workdir


@pytest.fixture
def strike(monkeypatch):
    """strike(step, action): the action happens once, when this step's line is written.

    First the save under way, if any, is waited for, unless `settled` is False.
    """
    write, init = metrics.MetricsFile.write, checkpoint.Checkpoints.__init__
    made = []

    def remember(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(checkpoint.Checkpoints, "__init__", remember)

    def plan(at_step, action, settled=True):
        struck = []

        def strike_and_write(self, step, values):
            write(self, step, values)
            if step == at_step and not struck:
                struck.append(step)
                if settled:
                    made[-1].wait()
                action()

        monkeypatch.setattr(metrics.MetricsFile, "write", strike_and_write)

    return plan


def continues(workdir, images, unharmed, reached, lost):
    """Resumes; asserts that so many of the steps reached are repeated, and the final figures."""
    assert max(runs.losses(workdir)) == reached
    assert runs.checkpoint_steps(workdir)[-1] == reached - lost
    assert lost <= EVERY
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert runs.metrics(workdir) == runs.metrics(unharmed)


def test_sigterm_saves_and_loses_nothing(images, unharmed, tmp_path, strike, capsys):
    strike(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert "SIGTERM: saved step 6" in capsys.readouterr().out
    continues(tmp_path, images, unharmed, reached=6, lost=0)


@pytest.mark.parametrize(("knn", "cut"), [("never", 3), ("2 steps", 2)])
def test_sigterm_cuts_an_evaluation_short_and_resuming_makes_it_up(
    knn, cut, images, tmp_path, monkeypatch, capsys
):
    """Whichever evaluators were due."""
    config = pictures.config(images, 8, evaluate_every="3 steps", evaluation__batch_size=1)
    config.evals.knn = knn
    assert loop.train(config, tmp_path / "whole") == 0
    strikes = iter([None, None, lambda: os.kill(os.getpid(), signal.SIGTERM)])
    put = Pass._put

    def strike_at_third_batch(self, *args):
        (next(strikes, None) or (lambda: None))()
        return put(self, *args)

    monkeypatch.setattr(Pass, "_put", strike_at_third_batch)
    assert loop.train(config, tmp_path / "cut") == 0
    assert f"the evaluation after {cut} was cut short" in capsys.readouterr().out
    assert runs.checkpoint_steps(tmp_path / "cut") == [cut]
    assert not any(
        key.startswith("val/") for line in runs.metrics(tmp_path / "cut") for key in line
    )
    assert loop.train(config, tmp_path / "cut") == 0
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")


def test_failed_save_stops_the_run_loudly(images, unharmed, tmp_path, strike):
    checkpoints, away = tmp_path / "checkpoints", tmp_path / "away"

    def replace_by_file():
        checkpoints.rename(away)
        checkpoints.write_text("not a directory")

    strike(6, replace_by_file)
    with pytest.raises(checkpoint.CheckpointError, match=r"saving checkpoint 8 to .* failed"):
        loop.train(pictures.config(images, STEPS), tmp_path)
    checkpoints.unlink()
    away.rename(checkpoints)
    # At the latest the next save, here that of step 12, finds that the one before failed.
    reached = max(runs.losses(tmp_path))
    assert 8 <= reached <= 12
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert runs.metrics(tmp_path) == runs.metrics(unharmed)


def test_full_disk_stops_the_run_loudly(images, unharmed, tmp_path, strike):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, before[1]))

    strike(6, fill_disk)
    try:
        with pytest.raises(checkpoint.CheckpointError, match="Free space") as error:
            loop.train(pictures.config(images, STEPS), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the last good checkpoint is step 4" in str(error.value)
    assert runs.checkpoint_steps(tmp_path) == [4]
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert runs.metrics(tmp_path) == runs.metrics(unharmed)


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


@pytest.mark.parametrize("damage", [flip_bit, lose_file, halve, lose_item])
def test_damaged_checkpoint_gives_way_to_the_one_before(images, unharmed, tmp_path, damage, caplog):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    damage(workdir / "checkpoints" / "12")
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert "checkpoint 12 is damaged" in caplog.text
    assert "moved to damaged_checkpoints/" in caplog.text
    assert (workdir / "damaged_checkpoints" / "12").is_dir()
    assert runs.metrics(workdir) == runs.metrics(unharmed)


def test_half_written_checkpoint_is_passed_over(images, unharmed, tmp_path):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    newest = workdir / "checkpoints" / "12"
    newest.rename(newest.with_name("12.orbax-checkpoint-tmp"))
    shutil.rmtree(workdir / "checkpoints" / "12.orbax-checkpoint-tmp" / "training")
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert runs.metrics(workdir) == runs.metrics(unharmed)
    assert runs.checkpoint_steps(workdir) == [4, 8, 12]


def test_nothing_but_damaged_checkpoints_is_an_error(images, unharmed, tmp_path):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    for step in (4, 8, 12):
        flip_bit(workdir / "checkpoints" / str(step))
    with pytest.raises(checkpoint.CheckpointError, match=r"all of \[4, 8, 12\] were damaged"):
        loop.train(pictures.config(images, STEPS), workdir)


@pytest.mark.parametrize("workers", [0, 1])
def test_vanished_data_file_is_named(images, unharmed, tmp_path, strike, workers):
    hidden = sorted((images / "train" / "dog").iterdir())
    contents = {path: path.read_bytes() for path in hidden}
    strike(5, lambda: [path.unlink() for path in hidden])
    try:
        with pytest.raises(FileNotFoundError, match=r"dog/\d+.jpg has vanished"):
            loop.train(pictures.config(images, STEPS, data__workers=workers), tmp_path)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    reached = max(runs.losses(tmp_path))
    continues(tmp_path, images, unharmed, reached, lost=reached % EVERY)


def test_killed_worker_stops_the_run(images, unharmed, tmp_path, strike):
    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    strike(5, kill)
    with pytest.raises(WorkerDied, match="No batch was lost"):
        loop.train(pictures.config(images, STEPS, data__workers=1), tmp_path)
    reached = max(runs.losses(tmp_path))
    continues(tmp_path, images, unharmed, reached, lost=reached % EVERY)


@pytest.mark.parametrize(("jump", "at_step"), [(-10 * 365 * 86400, 4), (86400, 12)])
def test_clock_jump_changes_nothing(images, unharmed, tmp_path, strike, monkeypatch, jump, at_step):
    """While a save is under way, whose time limits follow the clock that jumps."""
    real, save = time.time, checkpoint.Checkpoints.save

    def jumping_save(self, step, *args):
        save(self, step, *args)
        if step == at_step:
            monkeypatch.setattr(time, "time", lambda: real() + jump)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", jumping_save)
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert runs.metrics(tmp_path) == runs.metrics(unharmed)
    rates = [
        json.loads(line).get("time/images_per_second", 1.0)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(0 < rate < 1e6 for rate in rates)
    assert runs.checkpoint_steps(tmp_path)[-1] == STEPS


def test_only_checkpoints_read_the_clock_that_may_jump():
    """And these only to find that it did."""
    room = pathlib.Path(loop.__file__).parent
    readers = [p.name for p in room.glob("*.py") if re.search(r"time\.time\(", p.read_text())]
    assert readers == ["checkpoint.py"]


def test_loss_that_is_not_finite_names_step_and_batch(images, unharmed, tmp_path, monkeypatch):
    """The parameters go bad in step 5; step 6 is the first whose loss shows it."""
    make = steps.make_step

    def make_poisoned(*args, **kwargs):
        good = make(*args, **kwargs)

        def step(params, training, batch):
            poison = jnp.where(training["step"] == 4, jnp.nan, 0.0)
            params, training = good(params, training, batch)
            return params | {"cls_token": params["cls_token"] + poison}, training

        return step

    config = pictures.config(images, STEPS, log_every="3 steps")
    with monkeypatch.context() as patch:
        patch.setattr(steps, "make_step", make_poisoned)
        with pytest.raises(FloatingPointError, match="not finite at step 6") as error:
            loop.train(config, tmp_path)
    assert "the last good checkpoint is step 4" in str(error.value)
    record = json.loads((tmp_path / "nonfinite_0.json").read_text())
    source = data.source(config.data, "train")
    with data.train_iterator(source, batch_size=config.batch_size, seed=config.seed) as batches:
        sixth = [next(batches) for _ in range(6)][-1]
    assert record == {"step": 6, "indices": sixth["index"].tolist()}
    assert runs.checkpoint_steps(tmp_path) == [4]
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert runs.losses(tmp_path)[STEPS] == runs.losses(unharmed)[STEPS]
