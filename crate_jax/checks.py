"""What a config key is, and what its value must be: said in an error's words, and tested."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """`expected` is how an error goes on after that word; `kind` what a command line reads."""

    expected: str
    holds: Callable[[Any], bool]
    kind: type
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What an error says of a value, or None where it holds."""
        if self.holds(value):
            return None
        near = difflib.get_close_matches(str(value), self.choices, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        shown = " ".join(repr(value).split())  # of a section, say, it has many lines
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        return f"expected {self.expected}, got {shown}{hint}"


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: its dotted name, its default, what it means, and what a value must be.

    A run that is resumed may change it where `free`.
    """

    name: str
    default: Any
    meaning: str
    check: Check
    free: bool = False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def whole(least: float = -math.inf, most: float = math.inf) -> Check:
    """A whole number in [least, most]."""
    return Check(
        f"a whole number{_bounds(least, most)}", lambda x: _is_whole(x) and least <= x <= most, int
    )


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Check:
    """A finite number in [least, most], or beyond bounds that do not belong to it."""
    return Check(
        f"a number{_bounds(least, most, above, below)}",
        lambda x: _is_number(x) and least <= x <= most and above < x < below,
        float,
    )


def _bounds(least: float, most: float, above: float = -math.inf, below: float = math.inf) -> str:
    if math.isfinite(least) and math.isfinite(most):
        return f" from {_exact(least)} to {_exact(most)}"
    said = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
    parts = [f"{words} {_exact(bound)}" for words, bound in said if math.isfinite(bound)]
    return " " + " and ".join(parts) if parts else ""


def _exact(bound: float) -> str:
    return "2^63 - 1" if bound == 2**63 - 1 else f"{bound:,}"


def one_of(*choices: str) -> Check:
    """One of these words."""
    return Check(f"one of {', '.join(choices)}", lambda x: x in choices, str, choices)


def optional(check: Check) -> Check:
    """The same, or None."""
    return dataclasses.replace(
        check,
        expected=f"{check.expected}, or None",
        holds=lambda x: x is None or check.holds(x),
    )


def pair(check: Check) -> Check:
    """Two such numbers, the smaller one first."""

    def holds(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) != 2:
            return False
        return all(check.holds(x) for x in value) and value[0] <= value[1]

    return Check(f"(low, high), each {check.expected}", holds, tuple)


TEXT = Check("text", lambda x: isinstance(x, str), str)
PATH = dataclasses.replace(TEXT, expected="a path, as text")
TRUTH = Check("True or False", lambda x: isinstance(x, bool), bool)

_LONGEST = 2**53  # above it not every number of steps is a float
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?)?\s*")


def parse_duration(value: Any) -> tuple[float, str] | None:
    """(amount, "step", "epoch" or "example") of a duration; None where it is none."""
    match = _DURATION.fullmatch(value if isinstance(value, str) else f"{value}")
    if match is None or isinstance(value, bool) or float(match[1]) > _LONGEST:
        return None
    return float(match[1]), (match[2] or "steps").rstrip("s")


DURATION = Check(
    'a duration such as 500, "500 steps", "5 epochs" or "48000 examples"',
    lambda x: parse_duration(x) is not None,
    str,
)
PERIOD = Check(
    f'"" (as evaluate_every), "never", or {DURATION.expected}',
    lambda x: x in ("", "never") or DURATION.holds(x),
    str,
)


def like(default: Any) -> Check:
    """A value of the default's type: of a field whose class checks the rest."""
    if isinstance(default, bool):
        return TRUTH
    if isinstance(default, tuple):
        return _numbers_like(default)
    return {int: whole(), float: number(), str: TEXT}.get(type(default), optional(whole()))


def _numbers_like(default: tuple) -> Check:
    """As many numbers; of sides, which are whole, one may stand for both."""

    def holds(value: Any) -> bool:
        if not isinstance(value, tuple | list):
            return _is_whole(default[0]) and _is_whole(value)
        return len(value) == len(default) and all(map(_is_number, value))

    return Check(f"{len(default)} numbers such as {default}", holds, tuple)
