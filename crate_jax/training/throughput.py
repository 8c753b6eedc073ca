"""Where a run's time goes: the stopwatch, operations a second, and the trace of some steps."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Peak dense bf16 matrix operations a second, by a part of `device_kind`; from the makers'
# datasheets. The longest match counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "TPU v2": 45e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
# Of a chip, GiB that programs may use, by a part of `device_kind`: what libtpu 0.0.42 allows; of a
# card what it has, of which JAX takes three quarters if it is not told otherwise.
MEMORY_GIB = {
    "TPU v4": 30.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "H100 80GB": 79.11,
}


class Stopwatch:
    """Where the time of a run goes: steps, waiting for input, evaluation, checkpoints, compilation.

    Args:
        start: steps done before.
        total: steps of the run.
        batch_size: examples a step.
        flops: floating-point operations of training on one example.
        peak: of one device, operations a second; None where unknown.
        devices: how many.
    """

    def __init__(
        self,
        start: int,
        total: int,
        batch_size: int,
        flops: float,
        peak: float | None,
        devices: int,
    ):
        self.total, self.batch_size = total, batch_size
        self.flops, self.peak = flops, (peak or math.nan) * devices
        self._step, self._mark = start, time.monotonic()
        self._paused = self._waited = 0.0
        self._spent = {"compile": 0.0, "evaluation": 0.0, "checkpoint": 0.0}
        self._rate = math.nan

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Around what is not a training step: "compile", "evaluation" or "checkpoint"."""
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        self._spent[what] += seconds
        self._paused += seconds

    def lap(self, step: int) -> dict[str, float]:
        """Metrics since the last lap, all under time/ since no two runs agree on them."""
        now = time.monotonic()
        seconds = max(now - self._mark - self._paused, 1e-9)
        steps = step - self._step
        rate = steps * self.batch_size / seconds
        # The ETA follows a smoothed rate.
        self._rate = rate if math.isnan(self._rate) else 0.7 * self._rate + 0.3 * rate
        values = {
            "time/images_per_second": rate,
            "time/step": seconds / steps,
            "time/input_wait_fraction": min(1.0, self._waited / seconds),
            **{f"time/{what}": seconds for what, seconds in self._spent.items()},
        }
        if math.isfinite(self.peak):
            values["time/mfu"] = rate * self.flops / self.peak
        self._step, self._mark, self._paused, self._waited = step, now, 0.0, 0.0
        return values

    def eta(self) -> float:
        """Seconds of training steps that remain; evaluation comes on top."""
        return (self.total - self._step) * self.batch_size / self._rate


class Profile:
    """A trace of some steps for TensorBoard or Perfetto, in WORKDIR/profile.

    Args:
        directory: where to.
        steps: how many; 0: none.
        start: steps done before; the trace begins ten later, when all is compiled and warm.
        total: steps of the run: a shorter one is traced from its second step on.
    """

    def __init__(self, directory: pathlib.Path, steps: int, start: int, total: int):
        if steps < 0:
            raise ValueError(f"profile_steps: expected 0 or more, got {steps}")
        self.directory, self._running = directory, False
        self._first = min(start + 10, max(start + 1, total - steps))
        self._last = min(self._first + steps, total) if steps else -1

    def after(self, step: int, state: Any) -> bool:
        """To be called after every step, with what it returned; True when the trace is written."""
        if self._last < 0 or step not in (self._first, self._last):
            return False
        jax.block_until_ready(state)  # whole steps: the device works behind the host
        if step == self._first < self._last:
            jax.profiler.start_trace(str(self.directory))
            self._running = True
            return False
        return self.close()

    def close(self) -> bool:
        """Ends a trace that runs; True where there was one."""
        running, self._running = self._running, False
        if running:
            jax.profiler.stop_trace()
        return running


def datasheet_memory(device: jax.Device) -> float | None:
    """Bytes of a chip's memory; None where it is not known."""
    names = [name for name in MEMORY_GIB if name in device.device_kind]
    return 2**30 * MEMORY_GIB[max(names, key=len)] if names else None


def peak_flops(device: jax.Device) -> float | None:
    """Peak bf16 operations a second of a device; None where it is not known."""
    names = [name for name in PEAK_FLOPS if name.lower() in device.device_kind.lower()]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def count_flops(function: Callable, *args: Any) -> float:
    """Floating-point operations of a call, counted by XLA before its optimisations.

    Args:
        function: jittable.
        *args: arrays or jax.ShapeDtypeStruct.
    """
    analysis = jax.jit(function).lower(*args).cost_analysis() or {}
    return float(analysis.get("flops", math.nan))
