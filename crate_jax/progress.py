"""How far work is that takes more than a few seconds."""

import math
import time
from collections.abc import Callable

_EVERY = 5  # seconds


class Progress:
    """A line every few seconds: how many, how fast, how long the others will take.

    Args:
        label: before each line.
        total: images.
        say: prints a line.
        at_end: whether the end has a line, however soon it comes.
    """

    def __init__(self, label: str, total: int, say: Callable[[str], None], at_end: bool = True):
        self.label, self.total, self.say, self.at_end = label, total, say, at_end
        self._done, self._begin = 0, time.monotonic()
        self._spoke = self._begin

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        due = self.at_end if self._done == self.total else now - self._spoke >= _EVERY
        if not due:
            return
        self._spoke, seconds = now, max(now - self._begin, 1e-9)
        left = duration_text(seconds / self._done * (self.total - self._done))
        self.say(
            f"{self.label:<9} {self._done:,} of {self.total:,}, {self._done / seconds:,.2f} "
            f"images/s, {left} left"
        )


def duration_text(seconds: float) -> str:
    """75 -> "1:15", 4000 -> "1:06:40"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
