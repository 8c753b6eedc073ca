"""The same run on other devices, and a process whose memory does not grow."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from crate_jax.training import loop, metrics
from tests.end_to_end import pictures, runs

STEPS = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pictures.write(tmp_path_factory.mktemp("images"))


def many(jobs):
    """Runs [workdir, config, devices, changes] one after the other on eight forced devices."""
    command = [sys.executable, "-m", "tests.end_to_end.many_devices", json.dumps(jobs)]
    done = subprocess.run(
        command, cwd=runs.ROOT, env=runs.environment(8), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_devices_fsdp_and_accumulation_give_the_same_curve(images, tmp_path):
    """And a run that goes from eight devices to one to four is still the same run."""
    config = f"tests/end_to_end/folder_config.py:root={images},steps="
    names = {
        "one": (1, {}),
        "fsdp": (8, {"fsdp": 4}),
        "accumulation": (2, {"accumulate": 4, "remat": "full"}),
    }
    jobs = [[str(tmp_path / n), f"{config}{STEPS}", d, c] for n, (d, c) in names.items()]
    moved = tmp_path / "moved"
    output = many(
        [
            *jobs,
            *([str(moved), f"{config}{STEPS}", d, {"stop_after": s}] for d, s in MOVES),
        ]
    )
    assert output.count("resumed  after step") == 2
    curve = runs.losses(tmp_path / "one")
    assert len(curve) == STEPS
    for name in [*names, "moved"]:
        assert runs.losses(tmp_path / name) == pytest.approx(curve, rel=2e-4), name
    last = [runs.metrics(tmp_path / name)[-1] for name in ("one", "moved")]
    assert last[1] == pytest.approx(last[0], rel=1e-3)


# (devices, SIGTERM after this step): eight, then one, then four to the end.
MOVES = ((8, 4), (1, 9), (4, None))


def resident_mib():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_2000_steps(images, tmp_path, monkeypatch):
    """Checkpoints and evaluations included: the second half grows by no more than noise."""
    sizes = {}
    write = metrics.MetricsFile.write

    def measure(self, step, values):
        write(self, step, values)
        sizes[step] = resident_mib()

    monkeypatch.setattr(metrics.MetricsFile, "write", measure)
    config = pictures.config(
        images,
        2000,
        log_every="20 steps",
        checkpoint_every="250 steps",
        evaluate_every="250 steps",
    )
    assert loop.train(config, tmp_path) == 0
    steps = np.array([s for s in sizes if s > 600])
    memory = np.array([sizes[s] for s in steps])
    slope = np.polyfit(steps, memory, 1)[0] * 1000
    print(
        f"{memory[0]:.1f} MiB at {steps[0]}, {memory[-1]:.1f} at 2000; {slope:.2f} MiB/1,000 steps"
    )
    # One leaked batch of 8 images a step would be 24 MiB, one loss of 4 bytes with its Python
    # object some 0.1 MiB.
    assert slope < 4
