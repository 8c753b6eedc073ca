"""What a check finds, and running checks so that none stops the others."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        status: ok; note, worth knowing; problem, something will not work.
        what: what was found.
        remedy: what to do about it, or "".
    """

    topic: str
    status: Status
    what: str
    remedy: str = ""


def ok(topic: str, what: str, remedy: str = "") -> Finding:
    """As it should be."""
    return Finding(topic, "ok", what, remedy)


def note(topic: str, what: str, remedy: str = "") -> Finding:
    """Works, but is worth knowing."""
    return Finding(topic, "note", what, remedy)


def problem(topic: str, what: str, remedy: str) -> Finding:
    """Something does not work, and how to mend it."""
    return Finding(topic, "problem", what, remedy)


Check = Callable[[], Finding | Iterable[Finding] | None]


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """What the checks find, in their order; one that fails is reported and stops none."""
    for check in checks:
        try:
            found = check()
            if isinstance(found, Finding):
                yield found
            else:
                yield from found or ()
        except Exception as error:
            name = getattr(check, "__name__", "check").replace("_", " ")
            yield note(name, f"this check itself failed: {type(error).__name__}: {error}")
