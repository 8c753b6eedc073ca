"""What a data set's folder must hold, all that is missing named together."""

import pathlib
from collections import Counter
from collections.abc import Sequence

from crate_jax.files import read

_SHOWN = 3


def some(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def once(what: str, names: Sequence[str], listed: pathlib.Path) -> tuple[list[str], list[str]]:
    """Each name of a list once, in its order, and in lines what stood there more often."""
    repeated = [name for name, times in Counter(names).items() if times > 1]
    notes = [
        f"{what}: {len(repeated)} names stand in {listed.name} more than once, the first "
        f"{repeated[0]}; each is taken once"
        for _ in repeated[:1]
    ]
    return list(dict.fromkeys(names)), notes


def found(places: Sequence[pathlib.Path], *parts: str) -> pathlib.Path:
    """The place that holds most of the parts; of equal ones the last, which messages then name."""
    return max(reversed(places), key=lambda place: sum((place / part).exists() for part in parts))


def lines(path: pathlib.Path) -> list[str]:
    """What a list holds, a line each, without those that are empty."""
    stripped = map(str.strip, read(path).decode("utf-8", "replace").splitlines())
    return [line for line in stripped if line]


def expect_parts(what: str, parts: Sequence[pathlib.Path], how: str) -> None:
    """Raises ValueError that names every missing folder or list, and says how to get it."""
    if missing := [str(part) for part in parts if not part.exists()]:
        raise ValueError(
            f"{what}: expected its folders and lists, got none at {', '.join(missing)}.\n{how}"
        )


def expect_files(
    what: str, files: Sequence[pathlib.Path], listed: pathlib.Path | str, how: str
) -> None:
    """Raises ValueError that counts the missing files, names the first, and says how to get them.

    Args:
        what: the data set.
        files: that there must be; none at all is an error too.
        listed: where they are asked for.
        how: the layout, and where it comes from.
    """
    if not files:
        raise ValueError(f"{what}: expected names of images, got none in {listed}.\n{how}")
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(
            f"{what}: expected the {len(files)} files that {listed} asks for, got all but "
            f"{len(missing)}: {some(missing)}.\n{how}"
        )
