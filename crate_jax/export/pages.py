"""What every page shares: its template, its head, its tables of settings, and how it is written."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2

from crate_jax.files import write_atomically


def write_page(
    path: str | os.PathLike,
    template: str,
    *,
    title: str,
    lede: str,
    facts: Mapping[str, str] | None,
    tables: Mapping[str, Mapping],
    **values: object,
) -> Path:
    """Fills a template and writes the page, whole or not at all.

    Args:
        path: the file.
        template: a name in `templates/`.
        title: the heading.
        lede: a sentence or two below it, or "".
        facts: short things worth knowing, label to text.
        tables: settings by heading, nested as they are; empty ones are left out.
        **values: what else the template asks for.

    Returns:
        The path.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crate_jax.export"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = [(name, list(_flat(content))) for name, content in tables.items()]
    page = environment.get_template(template).render(
        title=title,
        lede=lede,
        facts=list((facts or {}).items()),
        tables=[(name, rows) for name, rows in settings if rows],
        **values,
    )
    return write_atomically(path, page)


def _flat(content: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)
