"""docs/equations_and_code.md names places in the code; they must exist."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "equations_and_code.md"


def definitions(path):
    """Every `name` and `Class.method` that a file defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_every_place_exists():
    places = re.findall(r"`(crate_jax/[\w/]+\.py)::([\w.]+)`", PAGE.read_text())
    assert len(places) > 30
    missing = [f"{file}::{name}" for file, name in places if name not in definitions(ROOT / file)]
    assert not missing
