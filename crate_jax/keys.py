# PYTHON_ARGCOMPLETE_OK
"""List every config key with its default and its meaning.

    python -m crate_jax.keys                  # all of them
    python -m crate_jax.keys data.scenes      # those that begin so

On the command line of `crate_jax.main` a key is set as --config.KEY=VALUE. A named size or a recipe
in configs/ sets many of them; what a run really has is printed by --config.dry_run=True and written
to its config.json. Keys below `model` depend on the family, which is named in brackets.
"""

import ast
import dataclasses
import functools
import io
import pathlib
import sys
import tokenize
from collections.abc import Iterator

_ROOM = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: its dotted name, its default as the source has it, and what it means."""

    name: str
    default: str
    meaning: str


@functools.cache
def known() -> tuple[Key, ...]:
    """Every key of `config.default()`, and the model keys of every family.

    They are read off the source without running it: that takes no import of JAX, so that the shell
    can ask for it at every press of the tab key, and the source is where the meanings are.
    """
    found = [*_of_default(), *_of_data()]
    by_name = {}
    for key in (*found, *_of_models()):
        by_name.setdefault(key.name, key)
    return tuple(by_name.values())


def _of_default() -> Iterator[Key]:
    """Assignments `c.optimizer.name = "adamw"  # meaning` of `config.default`."""
    tree, comments = _read("config.py")
    for node in ast.walk(_function(tree, "default")):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        value = ast.unparse(node.value)
        if value.startswith("placeholder("):
            value = "None"
        if "ConfigDict" not in value and not value.startswith("model("):
            _, _, name = ast.unparse(node.targets[0]).partition(".")
            yield Key(name, value, comments.get(node.lineno, ""))


def _of_data() -> Iterator[Key]:
    """The dictionary that `data.default_config` returns."""
    tree, comments = _read("data/__init__.py")

    def entries(dictionary: ast.Dict, prefix: str) -> Iterator[Key]:
        for key, value in zip(dictionary.keys, dictionary.values, strict=True):
            name = prefix + ast.literal_eval(key)
            if isinstance(value, ast.Dict):
                yield from entries(value, f"{name}.")
            else:
                yield Key(name, ast.unparse(value), comments.get(key.lineno, ""))

    returned = _function(tree, "default_config").body[-1]
    yield from entries(returned.value, "data.")


def _of_models() -> Iterator[Key]:
    """The fields of the models' config classes, the shared ones first."""
    yield Key("model.family", "'crate'", "crate, crate_alpha, crate_mae or vit")
    for file in ("base", "crate", "crate_alpha", "crate_mae", "vit"):
        tree, comments = _read(f"models/{file}.py")
        family = "" if file == "base" else f"[{file}] "
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field):
                    default = ast.unparse(field.value) if field.value else ""
                    meaning = comments.get(field.lineno, "")
                    yield Key(f"model.{field.target.id}", default, (family + meaning).strip())


def _read(path: str) -> tuple[ast.Module, dict[int, str]]:
    """The syntax tree of one of our files, and the comments that stand behind code, by line."""
    text = (_ROOM / path).read_text(encoding="utf-8")
    lines = text.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1][: token.start[1]].strip()
    }
    return ast.parse(text), comments


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)


def main(argv: list[str] | None = None) -> int:
    """Prints the keys that begin with the argument; returns the exit status."""
    from crate_jax import command_line

    parser = command_line.parser("python -m crate_jax.keys", __doc__)
    names = parser.add_argument("prefix", nargs="?", default="", help="of the keys; default: all")
    names.completer = lambda **_: [key.name for key in known()]
    wanted = command_line.parse(parser, argv).prefix
    return command_line.run(functools.partial(_print, wanted))


def _print(wanted: str) -> int:
    chosen = [key for key in known() if key.name.startswith(wanted)]
    if not chosen:
        raise ValueError(f"no config key begins with {wanted!r}")
    width = max(len(f"{key.name} = {key.default}") for key in chosen)
    for key in chosen:
        line = f"{key.name} = {key.default}"
        print(f"{line:{min(width, 48)}}  {key.meaning}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
