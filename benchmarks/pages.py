"""The generated parts of the documentation's pages: `<!-- NAME -->` ... `<!-- end of NAME -->`."""

import pathlib
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

DOCS = pathlib.Path(__file__).parents[1] / "docs"
_PART = re.compile(r"(<!-- ([\w -]+?) -->\n).*?(\n<!-- end of \2 -->)", re.DOTALL)


def written(page: str, parts: Mapping[str, str]) -> str:
    """The page with those of its parts that are given in place of what they were."""
    return _PART.sub(lambda m: m[1] + parts[m[2]] + m[3] if m[2] in parts else m[0], page)


def joined(paragraphs: Iterable[str]) -> str:
    """Paragraphs in lines of a page's length; tables, headings and pictures as they are."""
    return "\n\n".join(
        text if text.startswith(("|", "#", "!")) else _filled(text) for text in paragraphs if text
    )


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """A table in Markdown.

    Args:
        head: names of the columns.
        rows: cells.
        numbers_from: the first column that is set flush right.
    """
    rule = ["---"] * numbers_from + ["---:"] * (len(head) - numbers_from)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
