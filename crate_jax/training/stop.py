"""SIGTERM and Ctrl-C as a request that the loop answers between two steps."""

import signal
import threading
import types


class StopSignal:
    """True once SIGTERM or SIGINT arrived.

    Further SIGTERMs change nothing (a launcher and a scheduler may both send one, and the save must
    not be cut short); a second Ctrl-C raises KeyboardInterrupt at once.

        with StopSignal() as stop:
            for step in ...:
                if stop:
                    save(); return stop.status

    Outside the main thread (a notebook's worker, say) nothing is installed and it stays False.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def name(self) -> str:
        """Which signal."""
        return self.received.name if self.received else ""

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, as shells expect; 0 after SIGTERM, once saved."""
        return 130 if self.received == signal.SIGINT else 0

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
