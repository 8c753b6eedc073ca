"""A process whose memory does not grow."""

import ctypes
import gc
import pathlib
import sys

import numpy as np
import pytest

from crate_jax.training import loop, metrics
from tests.end_to_end import pictures


def resident_mib():
    """What is in use: without garbage, and without what malloc keeps in fragments."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_2000_steps(images, tmp_path, monkeypatch, optimised):
    """Checkpoints and evaluations included: after the first 600 steps, no more than noise."""
    sizes = {}
    write = metrics.MetricsFile.write

    def measure(self, step, values):
        write(self, step, values)
        if step % 100 == 0:
            sizes[step] = resident_mib()

    monkeypatch.setattr(metrics.MetricsFile, "write", measure)
    config = pictures.config(
        images,
        2000,
        batch_size=4,
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
    # One leaked batch of 4 images a step would be 12 MiB, one loss of 4 bytes with its Python
    # object some 0.1 MiB.
    assert slope < 4
