"""The same run on other devices."""

import json
import subprocess
import sys

import pytest

from tests.end_to_end import runs

pytestmark = pytest.mark.slow
STEPS = 12


def many(jobs):
    """Runs [workdir, config, devices, changes] one after the other on eight forced devices."""
    command = [sys.executable, "-m", "tests.end_to_end.many_devices", json.dumps(jobs)]
    done = subprocess.run(
        command, cwd=runs.ROOT, env=runs.environment(8), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_devices_fsdp_and_accumulation_give_the_same_curve(images, tmp_path):
    """And a run that goes from eight devices to one to four is still the same run.

    That one has Muon, whose momenta are matrices large enough to be split, beside AdamW's state.
    """
    config = f"tests/end_to_end/folder_config.py:root={images},steps="
    names = {
        "one": (1, {}),
        "fsdp": (8, {"fsdp": 4, "evaluation.batch_size": 250}),  # not a multiple of the devices
        "accumulation": (2, {"accumulate": 4, "remat": "full"}),
        "muon": (1, MUON),
    }
    jobs = [[str(tmp_path / n), f"{config}{STEPS}", d, c] for n, (d, c) in names.items()]
    moved = tmp_path / "moved"
    output = many(
        [
            *jobs,
            *([str(moved), f"{config}{STEPS}", d, MUON | change] for d, change in MOVES),
        ]
    )
    assert output.count("resumed  after step") == 2
    curve = runs.losses(tmp_path / "one")
    assert len(curve) == STEPS
    for name in ("fsdp", "accumulation"):
        assert runs.losses(tmp_path / name) == pytest.approx(curve, rel=2e-4), name
    assert runs.losses(moved) == pytest.approx(runs.losses(tmp_path / "muon"), rel=2e-4)
    last = {name: runs.metrics(tmp_path / name)[-1] for name in ("one", "fsdp", "muon", "moved")}
    assert last["one"]["val/images"] == 12
    assert last["fsdp"] == pytest.approx(last["one"], rel=1e-3)
    assert last["moved"] == pytest.approx(last["muon"], rel=1e-3)


MUON = {"optimizer.name": "muon", "model.dim": 128, "model.heads": 4}
# Eight devices until SIGTERM after step 4, then one until step 9, then four to the end.
MOVES = ((8, {"fsdp": 4, "stop_after": 4}), (1, {"stop_after": 9}), (4, {}))
