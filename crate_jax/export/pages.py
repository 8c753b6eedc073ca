"""What every page shares: its template, its head, its tables of settings, and how it is written."""

import base64
import hashlib
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
    explorer: Mapping | None = None,
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
        explorer: `explorer.contents`, or None for a page without a script. Its script is the only
            one that the page's content security policy lets run, by its hash.
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
    script = Path(__file__).with_name("templates").joinpath("explorer.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    settings = [(name, list(_flat(content))) for name, content in tables.items()]
    page = environment.get_template(template).render(
        title=title,
        lede=lede,
        facts=list((facts or {}).items()),
        tables=[(name, rows) for name, rows in settings if rows],
        explorer=explorer,
        script=script,
        script_hash=f"sha256-{digest}",
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
