"""Operations a second, and where the time goes."""

import types

import jax
import jax.numpy as jnp
import pytest

from crate_jax.training import throughput


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5 lite", 197e12),
        ("TPU v4", 275e12),
        ("cpu", None),
    ],
)
def test_peak_of_known_chips(kind, peak):
    assert throughput.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_flops_of_a_product():
    a, b = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((7, 3), jnp.float32)
    assert throughput.count_flops(jnp.matmul, a, b) == 2 * 5 * 7 * 3


@pytest.mark.parametrize(
    ("steps", "start", "total", "traced"),
    [(3, 0, 100, (10, 13)), (3, 50, 100, (60, 63)), (3, 0, 8, (5, 8)), (20, 0, 6, (1, 6))],
)
def test_steps_that_are_profiled(tmp_path, monkeypatch, steps, start, total, traced):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = throughput.Profile(tmp_path, steps, start, total)
    events = {}
    for step in range(start + 1, total + 1):
        written = profile.after(step, jnp.zeros(()))
        if calls:
            events[step] = (calls.pop(), written)
    assert events == {traced[0]: ("start", False), traced[1]: ("stop", True)}
    assert not profile.close()


def test_profile_needs_a_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="expected 0 or more, got -1"):
        throughput.Profile(tmp_path, -1, 0, 10)


def test_stopwatch_keeps_the_kinds_of_time_apart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    watch = throughput.Stopwatch(0, 20, batch_size=8, flops=1e9, peak=1e12, devices=2)
    with watch.waiting():
        passes(1.0)
    passes(3.0)
    with watch.pause("evaluation"):
        passes(50.0)
    with watch.pause("checkpoint"):
        passes(5.0)
    values = watch.lap(4)
    assert values["time/step"] == pytest.approx(1.0)
    assert values["time/images_per_second"] == pytest.approx(8.0)
    assert values["time/input_wait_fraction"] == pytest.approx(0.25)
    assert (values["time/evaluation"], values["time/checkpoint"]) == (50.0, 5.0)
    assert values["time/mfu"] == pytest.approx(8 * 1e9 / 2e12)
    assert watch.eta() == pytest.approx(16.0)
