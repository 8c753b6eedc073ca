"""A run that was stopped ends with the same metrics as one that was not; in processes."""

import signal

import pytest

from crate_jax.training import loop
from tests.end_to_end import runs, tiny_config

STEPS = 40
CONFIG = f"{runs.TINY}:{STEPS}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert loop.train(tiny_config.get_config(STEPS), workdir) == 0
    return workdir


@pytest.mark.slow
@pytest.mark.usefixtures("signals_heard")
def test_killed_terminated_and_damaged_run_equals_uninterrupted(uninterrupted, tmp_path, caplog):
    status, _ = runs.interrupt(tmp_path, signal.SIGKILL, 7, config=CONFIG)
    assert status == -signal.SIGKILL
    assert runs.metrics(tmp_path, whole=False)[-1]["step"] < STEPS

    status, output = runs.interrupt(tmp_path, signal.SIGTERM, 15, config=CONFIG)
    assert status == 0, output
    assert "resumed" in output
    assert "SIGTERM: saved step" in output
    stopped = runs.checkpoint_steps(tmp_path)[-1]
    assert 15 <= stopped < STEPS

    status, output = runs.interrupt(tmp_path, signal.SIGINT, stopped + 3, config=CONFIG)
    assert status == 130, output
    assert f"resumed  after step {stopped} " in output
    newest = runs.checkpoint_steps(tmp_path)[-1]
    arrays = sorted((tmp_path / "checkpoints" / str(newest) / "params").rglob("*"))
    largest = max((p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

    assert loop.train(tiny_config.get_config(STEPS), tmp_path) == 0
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert (tmp_path / "damaged_checkpoints" / str(newest)).is_dir()
    assert runs.metrics(tmp_path) == runs.metrics(uninterrupted)
