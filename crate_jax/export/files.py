"""Files that are there whole or not at all."""

import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: str | bytes) -> Path:
    """Writes a file so that a kill or a full disk never leaves half of it.

    The content goes to a temporary file in the same folder, reaches the disk, and takes the
    name in one step. Missing parent folders are made. Text is written as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written or the disk is full; what was at `path` before is
            still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode("utf-8")
    # Not `tempfile`: its files are private (0600), and a web server could not read the result.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
