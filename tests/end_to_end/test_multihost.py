"""Two real processes on one machine as one run, over JAX's distributed runtime."""

import contextlib
import json
import socket
import subprocess
import sys
import time

import pytest

from crate_jax.training import loop
from tests.end_to_end import pictures, runs, slurm

pytestmark = pytest.mark.slow
STEPS, EVERY = 16, 4  # steps of the run and between checkpoints
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


def reach(processes, workdir, step):
    """Waits until a line of this step or a later one is written."""
    deadline = time.monotonic() + 200
    while not any(done >= step for done in runs.losses(workdir)):
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in processes), finish(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """Images of which some cannot be decoded."""
    root = pictures.write(tmp_path_factory.mktemp("torn"))
    for name in ("train/cat/001", "train/dog/006", "train/owl/003", "val/dog/000"):
        path = root / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:-300])
    return root


def test_two_processes_killed_preempted_and_requeued_equal_one(torn, tmp_path):
    """One process is killed; the run goes on as a Slurm job, whose time ends; it is requeued."""
    extra = ("--config.data.on_corrupt=skip", "--config.evaluation.report_images=2")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = pictures.config(torn, STEPS, data__on_corrupt="skip")
    assert loop.train(alone, one) == 0

    processes = start(two, torn, *extra, "--config.report=True", slow=0.1)
    reach(processes, two, 6)
    processes[1].kill()
    begin = time.monotonic()
    output, _ = processes[0].communicate(timeout=100)
    assert time.monotonic() - begin < 60  # less than the heartbeat limit of 100 s
    assert processes[0].returncode == 1, output
    assert "process 0 of 2 lost another one" in output
    assert "Traceback" not in output
    reached, saved = max(runs.losses(two)), runs.checkpoint_steps(two)
    assert reached - max(saved, default=0) <= 2 * EVERY  # one save may have been under way

    queue = slurm.Slurm(tmp_path)
    config = f"{CONFIG}:root={torn},steps={STEPS},slow=0.1"
    variables = {"CONFIG": config, "WORKDIR": str(two), "PYTHON": sys.executable}
    queue.submit(*extra, "--config.report=True", **variables)
    queue.start()
    reach([queue.process], two, reached + 1)
    queue.warn()
    status, (first, second) = queue.finish()
    stopped = runs.checkpoint_steps(two)[-1]
    assert status == 0, first + second
    assert reached < stopped < STEPS
    assert max(runs.losses(two)) == stopped
    assert f"resumed  after step {max(saved, default=0)} of {STEPS}" in first or not saved
    assert f"SIGTERM: saved step {stopped}" in first
    assert "process 0 of 2 on" in first
    assert "process 1 of 2 on" in second
    assert "step " not in second.replace("process 1 of 2", "")
    job = queue.environment["SLURM_JOB_ID"]
    assert queue.told("signalled") == ["--signal=TERM", job]
    assert queue.told("requeued") == ["requeue", job]

    queue.start()
    status, (first, second) = queue.finish()
    assert status == 0, first + second
    assert f"resumed  after step {stopped} of {STEPS}" in first
    assert len(queue.told("requeued")) == 2  # not again
    assert (two / "report" / "index.html").exists()
    # The corrupt images of both processes are counted, those met before a stop included.
    lines = [runs.metrics(workdir) for workdir in (one, two)]
    assert len(lines[0]) == len(lines[1]) == STEPS + 1
    for mine, other in zip(*lines, strict=True):
        assert other == pytest.approx(mine, rel=1e-5)
    assert (lines[1][-1]["val/images"], lines[1][-1]["val/skipped_images"]) == (11, 1)
    listed = [sorted((w / "skipped_images.txt").read_text().split()) for w in (one, two)]
    assert listed[1] == listed[0]
    assert len(listed[0]) == lines[1][-2]["train/skipped_images"] == 3

    finish(start(two, torn, *extra, "--mode=eval"))
    assert json.loads((two / "eval.json").read_text()) == pytest.approx(lines[0][-1], rel=1e-5)


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
