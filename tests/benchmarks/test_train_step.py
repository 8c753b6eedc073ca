"""The benchmarks of a step: every path of them runs, on tiny networks."""

import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from benchmarks import device
from benchmarks import input as input_benchmark
from crate_jax.models import backends
from tests.end_to_end.runs import ROOT, TINY, environment


@pytest.mark.slow
def test_smoke():
    """A row each of two networks, two dtypes, a step and four forward passes; on a CPU by XLA."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", "--smoke"],
        cwd=ROOT,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    what = {tuple(re.split(r"\s{2,}", row)[:4]) for row in rows}
    assert len(rows) == len(what) == 20, done.stdout
    for row in rows:
        images_a_second, milliseconds = (float(x.replace(",", "")) for x in row.split()[-6:-4])
        assert images_a_second > 0
        assert milliseconds > 0


@pytest.mark.slow
def test_a_device_that_computes_rightly(capsys, monkeypatch):
    """This CPU does; with attention that is off by 5 % it does not."""
    monkeypatch.setattr(device, "NETWORKS", ("crate-testing",))
    monkeypatch.setattr(device, "SHAPES", ((1, 21, 1, 8),))
    assert device.main(["--size=64"]) == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said
    assert "attention xla bfloat16 (1, 21, 1, 8)" in said
    assert "TFLOP/s a device" in said
    plain = backends.attend

    def off(query, key, value, backend="xla"):
        out = plain(query, key, value, backend)
        return out if query.dtype == jnp.float32 else 1.05 * out

    monkeypatch.setattr(backends, "attend", off)
    assert device.main(["--size=64"]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert [line.split(")")[0] for line in said if line.startswith("attention")] == [
        "attention xla bfloat16 (1, 21, 1, 8"
    ]


def test_input_names_the_limit(capsys):
    """Input of 1,000,000,000 images a second is not slower than a step on this machine."""
    input_benchmark.name_the_limit(f"{TINY}:12", 1e9, 16)
    assert "the limit is the step" in capsys.readouterr().out
