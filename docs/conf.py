"""Sphinx builds the documentation from this: python -m sphinx -W docs docs/_build/html"""

import pathlib
import re
import tomllib

from docutils import nodes

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "crate_jax" / "_version.py").read_text())[1]

project = "crate_jax"
author = PROJECT["authors"][0]["name"]
copyright = f"{author}; Apache-2.0"
release = version = VERSION

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
default_role = "code"  # docstrings write `name` in single backticks
smartquotes = False  # two hyphens begin an option
nitpicky = True
# Other projects' documentation is not fetched, so their names are no links; nor are private ones.
nitpick_ignore_regex = [(r"py:.*", r"(?!crate_jax\.).*"), (r"py:.*", r".*\._\w+")]

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__",
}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # docstrings give shapes; "*b n" would be read as markup
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"crate_jax {VERSION}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": PROJECT["urls"]["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}


def as_rest(app, what, name, obj, options, lines):
    """Docstrings are plain text: what reStructuredText would take for markup is escaped.

    An indented block after an empty line, such as a command, is shown as it stands. Runs before
    napoleon, which reads the sections that follow, Args and the like.
    """
    out, literal, sections = [], False, False
    for number, line in enumerate(lines):
        sections = sections or re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line)
        indented = line.startswith("    ") and not sections
        if indented and not literal and not lines[number - 1].strip():
            out += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        if not literal:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", text) for text in parts[::2]]
            line = "".join(parts)
        out.append(line)
    lines[:] = out


def short_types(app, what, name, obj, options, signature, returns):
    """Signatures with ArrayLike instead of all that it stands for."""

    def short(text):
        return text and re.sub(
            r"~?[\w.]*\bArray \| ~?[\w.]*ndarray(?: \| ~?[\w.]+)* \| complex",
            "ArrayLike",
            text,
        )

    return short(signature), short(returns)


def en_dashes(app, doctree):
    """Two hyphens between a parameter and its text, the only ones that Sphinx itself writes."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def setup(app):
    """Sphinx's hook."""
    app.connect("autodoc-process-docstring", as_rest, priority=100)
    app.connect("autodoc-process-signature", short_types)
    app.connect("doctree-read", en_dashes)
