"""Two real processes on one machine as one run, over JAX's distributed runtime."""

import contextlib
import signal
import socket
import subprocess
import time

import pytest

from crate_jax.training import loop
from tests.end_to_end import pictures, runs

STEPS = 12
CONFIG = "tests/end_to_end/folder_config.py"


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(workdir, images, *extra, count=2, slow=0.0, own=None):
    """Starts the processes of a run; `own` maps a process to arguments of its own."""
    address = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            runs.command(
                workdir,
                f"{CONFIG}:root={images},steps={STEPS},slow={slow}",
                f"--coordinator_address={address}",
                "--num_processes=2",
                f"--process_id={k}",
                *extra,
                *(own or {}).get(k, ()),
            ),
            cwd=runs.ROOT,
            env=runs.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(count)
    ]


def finish(processes, status=0):
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [status] * len(processes), "\n".join(outputs)
    return outputs


def test_two_processes_equal_one_and_stop_together(images, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert loop.train(pictures.config(images, STEPS), one) == 0

    processes = start(two, images, slow=0.1)
    deadline = time.monotonic() + 200
    while not any(step >= 3 for step in runs.losses(two)):
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # told to one, obeyed by both
    first, second = finish(processes)
    stopped = runs.checkpoint_steps(two)[-1]
    assert 3 < stopped < STEPS
    assert max(runs.losses(two)) == stopped
    assert f"SIGTERM: saved step {stopped}" in first
    assert "process 0 of 2 on" in first
    assert "process 1 of 2 on" in second
    assert "step " not in second.replace("process 1 of 2", "")

    first, _ = finish(start(two, images))
    assert f"resumed  after step {stopped} of {STEPS}" in first
    assert runs.losses(two) == pytest.approx(runs.losses(one), rel=1e-5)
    assert [p["val/images"] for p in runs.metrics(two) if "val/images" in p] == [12]
    last = [runs.metrics(workdir)[-1] for workdir in (one, two)]
    assert last[1] == pytest.approx(last[0], rel=1e-5)


def test_processes_of_different_configs_refuse_to_train(images, tmp_path):
    processes = start(tmp_path, images, own={1: ["--config.label_smoothing=0.1"]})
    for output in finish(processes, status=2):
        assert "expected the same config on all processes; process(es) [1] differ" in output
    assert not (tmp_path / "checkpoints").exists()


def test_data_missing_on_one_process_stops_both(images, tmp_path):
    processes = start(tmp_path, images, own={1: ["--config.data.root=/nowhere"]})
    first, second = finish(processes, status=2)
    assert "opening the data failed on process(es) [1]" in first
    assert "no such folder" in second


def test_absent_process_ends_the_wait(images, tmp_path):
    begin = time.monotonic()
    (output,) = finish(start(tmp_path, images, "--initialization_timeout=4", count=1), status=2)
    assert "not all processes joined within 4 s" in output
    assert time.monotonic() - begin < 120
