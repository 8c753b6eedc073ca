"""What a data set's folder must hold, all that is missing named together."""

import pathlib
from collections.abc import Sequence

from crate_jax.files import read

_SHOWN = 3


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
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{what}: expected the {len(files)} files that {listed} asks for, got all but "
            f"{len(missing)}: {', '.join(missing[:_SHOWN])}{more}.\n{how}"
        )
