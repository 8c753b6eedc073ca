"""SIGTERM, SIGHUP and Ctrl-C as a request that the loop answers between two steps."""

import os
import signal
import threading
import types

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Whether to stop: because a signal arrived, here or at another process of the run.

    SIGTERM and SIGHUP (a terminal that was closed; under `nohup` it stays ignored) ask for a save
    and status 0. Further ones change nothing (a launcher and a scheduler may both send one, and the
    save must not be cut short); a second Ctrl-C raises KeyboardInterrupt at once.

        with StopSignal() as stop:
            for step in ...:
                if stop.requested(step):
                    save(); return stop.status

    Outside the main thread (a notebook's worker, say) nothing is installed and it stays False.

    Where the run has several processes, SIGTERM is left to JAX's preemption service, which tells
    all of them and makes `requested` true at the same step in each. The other signals are passed on
    as a SIGTERM.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._several = jax.process_count() > 1
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS[1:] if self._several else self.SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask at every step."""
        if self._several:
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            self.received = self.received or signal.SIGTERM
        return self.received is not None

    def within_step(self) -> bool:
        """Whether to cut short what is done between two steps; several processes never do."""
        return self.received is not None and not self._several

    @property
    def name(self) -> str:
        """Which signal."""
        return self.received.name if self.received else ""

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, as shells expect; else 0, once saved."""
        return 130 if self.received == signal.SIGINT else 0

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
