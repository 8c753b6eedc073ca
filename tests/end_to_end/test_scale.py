"""The same run on other devices, and a process whose memory does not grow."""

import json
import pathlib
import re
import signal
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


TOY = (
    "--config.model.image_size=(32,32)",
    "--config.model.patch_size=8",
    "--config.model.dim=24",
    "--config.model.heads=3",
    "--config.model.depth=1",
    "--config.data.image_size=32",
    "--config.data.resize=36",
    "--config.data.workers=0",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.capture_images=0",
    "--config.batch_size=8",
    "--config.epochs=16",
    "--config.optimizer.warmup=2 steps",
    "--config.log_every=1 steps",
    "--config.checkpoint_every=3 steps",
    "--config.evaluate_every=0",
    "--config.tensorboard=False",
    "--config.report=False",
)


def test_imagenet_b_killed_on_eight_devices_resumes_on_two(images, tmp_path):
    """The recipe's file at a toy width, as a user starts it: 48 steps of eight JPEGs."""
    extra = (*TOY, f"--config.data.root={images}")
    options = {"config": "configs/imagenet_b.py"}
    runs.run(tmp_path / "whole", *extra, devices=8, **options)
    status, output = runs.interrupt(
        tmp_path / "killed", signal.SIGKILL, 9, *extra, devices=8, **options
    )
    assert status == -signal.SIGKILL, output
    reached = max(line["step"] for line in runs.metrics(tmp_path / "killed", whole=False))
    assert 9 <= reached < 48
    done = runs.run(tmp_path / "killed", *extra, devices=2, **options)
    resumed = int(re.search(r"resumed  after step (\d+) of 48", done.stdout)[1])
    # The save before the last may still have been under way.
    assert reached - resumed <= 6
    whole, killed = (runs.losses(tmp_path / name) for name in ("whole", "killed"))
    assert len(whole) == 48
    # The recipe computes in bfloat16 (2^-9 = 2e-3), and Lion takes signs of what was rounded.
    assert killed == pytest.approx(whole, rel=1e-3)
