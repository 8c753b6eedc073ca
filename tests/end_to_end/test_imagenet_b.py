"""The recipe's file, killed on eight devices and resumed on two."""

import re
import signal

import pytest

from tests.end_to_end import runs

pytestmark = pytest.mark.slow
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
