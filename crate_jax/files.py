"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path` to write to, which becomes `path` when all went well.

    A kill, an exception or a full disk never leaves half of a file: what is written reaches the
    disk, and then takes the name in one step. Missing parent folders are made.

    Raises:
        OSError: the folder cannot be written or the disk is full; what was at `path` before is
            still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private (0600), and a web server could not read the result.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike, content: str | bytes) -> Path:
    """Writes a file whole or not at all; text as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: as `whole`.
    """
    with whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)
