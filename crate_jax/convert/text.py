"""Words from a file that is not trusted, for a terminal and in one line."""

from collections.abc import Iterable

_LISTED, _LONGEST = 8, 200


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_line(text: object) -> str:
    """The first line of a library's error."""
    return _short(printable(next(iter(str(text).strip().splitlines()), "")))


def listed(items: Iterable[str]) -> str:
    """The first few of many, and how many more."""
    items = list(items)
    more = f", ... {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(_short(printable(item)) for item in items[:_LISTED]) + more
