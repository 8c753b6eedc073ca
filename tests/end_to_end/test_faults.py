"""Faults of docs/reliability.md in whole runs; those of checkpoints alone in training/.

In each test a run is struck by something in its middle, and then continued by the same command. It
must end with the metrics of a run that nothing befell, and may repeat no more than the steps since
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
import subprocess
import time

import jax.numpy as jnp
import pytest

from crate_jax import data, files
from crate_jax.data.processes import WorkerDied
from crate_jax.training import checkpoint, loop, metrics
from crate_jax.training.evaluation import Pass
from crate_jax.training.step import make_step
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
    """Resumes; asserts that so many of the steps reached are repeated, and the final metrics."""
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


@pytest.mark.parametrize(
    ("knn", "cut"), [("never", 3), pytest.param("2 steps", 2, marks=pytest.mark.slow)]
)
def test_sigterm_cuts_an_evaluation_short_and_resuming_makes_it_up(
    knn, cut, images, tmp_path, monkeypatch, capsys
):
    """Whichever evaluators were due."""
    config = pictures.config(images, 8, evaluate_every="3 steps", evaluation__batch_size=1)
    config.evals.knn = knn
    assert loop.train(config, tmp_path / "whole") == 0
    strikes = iter([None, None, lambda: os.kill(os.getpid(), signal.SIGTERM)])
    batches = Pass.batches

    def strike_at_third_batch(self, *args):
        for batch in batches(self, *args):
            (next(strikes, None) or (lambda: None))()
            yield batch

    monkeypatch.setattr(Pass, "batches", strike_at_third_batch)
    assert loop.train(config, tmp_path / "cut") == 0
    assert f"the evaluation after {cut} was cut short" in capsys.readouterr().out
    assert runs.checkpoint_steps(tmp_path / "cut") == [cut]
    assert not any(
        key.startswith("val/") for line in runs.metrics(tmp_path / "cut") for key in line
    )
    assert loop.train(config, tmp_path / "cut") == 0
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")


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


def test_a_moved_workdir_is_not_made_anew(images, unharmed, tmp_path, strike):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    strike(6, lambda: workdir.rename(moved))
    with pytest.raises(OSError, match=r"run: expected the folder .* it was moved or deleted"):
        loop.train(pictures.config(images, STEPS), workdir)
    assert [p.name for p in tmp_path.iterdir()] == ["moved"]
    (moved / ".lock").unlink()  # of this process, which lives: another would take it over
    assert loop.train(pictures.config(images, STEPS), moved) == 0
    assert runs.metrics(moved) == runs.metrics(unharmed)


def test_a_line_that_cannot_be_written_names_file_and_checkpoint(
    images, unharmed, tmp_path, monkeypatch
):
    write = metrics.MetricsFile.write

    def full(self, step, values):
        if step == 6:
            self._file.write('{"step": 6, "tra')  # as much as there was room for
            self._file.close()
            self._file = open("/dev/full", "a")  # noqa: SIM115, closed with the metrics
        write(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsFile, "write", full)
        with pytest.raises(OSError) as error:
            loop.train(pictures.config(images, STEPS), tmp_path)
    assert f"{tmp_path / 'metrics.jsonl'} cannot be written: No space left" in str(error.value)
    assert "the last good checkpoint is step 4" in str(error.value)
    assert loop.train(pictures.config(images, STEPS), tmp_path) == 0
    assert runs.metrics(tmp_path) == runs.metrics(unharmed)


def test_a_workdir_holds_one_run_at_a_time_and_does_not_start_over(images, unharmed, tmp_path):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_bytes()
    with (
        files.Lock(workdir / ".lock"),
        pytest.raises(
            ValueError, match=f"no other process at work there, got process {os.getpid()}"
        ),
    ):
        loop.train(pictures.config(images, STEPS), workdir)
    (workdir / "checkpoints").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="expected the checkpoints of the 12 steps"):
        loop.train(pictures.config(images, STEPS), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["checkpoints", "pipe"])
def test_a_process_ends_soon_with_our_line_or_goes_on(images, tmp_path, fault):
    config = f"tests/end_to_end/folder_config.py:root={images},steps={STEPS},slow=0.02"
    process = subprocess.Popen(
        runs.command(tmp_path, config, "--config.tensorboard=True"),
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    if fault == "pipe":
        process.stdout.close()
        assert process.wait(120) == 0
        assert process.stderr.read() == ""
        assert max(runs.losses(tmp_path)) == STEPS
        return
    while not (tmp_path / "checkpoints" / "4").is_dir():
        time.sleep(0.01)
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "checkpoints").write_text("")
    last = process.stderr.readline()
    begin = time.monotonic()
    assert process.wait(60) == 2
    assert time.monotonic() - begin < 10
    assert last.startswith("error: saving checkpoint")
    assert process.stderr.read() == ""


@pytest.mark.parametrize("kept", [0, 5])
def test_lost_lines_are_said_and_the_run_goes_on(images, unharmed, tmp_path, caplog, kept):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    path = workdir / "metrics.jsonl"
    before = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= 8]
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert "lines that were there" not in caplog.text
    shutil.rmtree(workdir / "checkpoints" / "12")
    path.write_text("".join(f"{line}\n" for line in before[:kept]))
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert (
        f"metrics.jsonl: expected the 8 lines that were there at the last checkpoint, got {kept}"
        in caplog.text
    )
    assert max(runs.losses(workdir)) == STEPS


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(step):
    path = largest_file(step / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_gives_way_to_the_one_before(images, unharmed, tmp_path, caplog):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    flip_bit(workdir / "checkpoints" / "12")
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert "checkpoint 12 is damaged" in caplog.text
    assert runs.metrics(workdir) == runs.metrics(unharmed)


@pytest.mark.slow
def test_half_written_checkpoint_is_passed_over(images, unharmed, tmp_path):
    workdir = shutil.copytree(unharmed, tmp_path / "run")
    newest = workdir / "checkpoints" / "12"
    newest.rename(newest.with_name("12.orbax-checkpoint-tmp"))
    shutil.rmtree(workdir / "checkpoints" / "12.orbax-checkpoint-tmp" / "training")
    assert loop.train(pictures.config(images, STEPS), workdir) == 0
    assert runs.metrics(workdir) == runs.metrics(unharmed)
    assert runs.checkpoint_steps(workdir) == [4, 8, 12]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_clock_jump_changes_nothing(images, unharmed, tmp_path, strike, monkeypatch):
    """While a save is under way, whose time limits follow the clock that jumps."""
    jump, at_step = 86400, 12
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
    make = make_step

    def make_poisoned(*args, **kwargs):
        good = make(*args, **kwargs)

        def step(params, training, batch):
            poison = jnp.where(training["step"] == 4, jnp.nan, 0.0)
            params, training = good(params, training, batch)
            return params | {"cls_token": params["cls_token"] + poison}, training

        return step

    config = pictures.config(images, STEPS, log_every="3 steps")
    with monkeypatch.context() as patch:
        patch.setattr(loop.program, "make_step", make_poisoned)
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
