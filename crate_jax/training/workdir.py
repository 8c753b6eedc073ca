"""The directory of a run: claimed by one config, writable, with room on its disk."""

import json
import os
import pathlib
import shutil

import ml_collections

from crate_jax import config as configuration
from crate_jax.files import write_atomically

CONFIG = "config.json"


def claim(directory: pathlib.Path, config: ml_collections.ConfigDict, needed_bytes: int) -> None:
    """Makes the directory this config's own, or finds that it already is.

    Args:
        directory: made where it does not exist.
        config: resolved; written to config.json at the first claim.
        needed_bytes: free space that the run will want.

    Raises:
        ValueError: where the directory holds a run of another config (the message shows the
            difference), or files of something else.
        OSError: where it cannot be written or the disk has too little room.
    """
    check(directory, config, needed_bytes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_writable(directory)
    except OSError as error:
        raise OSError(_cannot_write(directory, error.strerror or str(error))) from error
    if not (directory / CONFIG).exists():
        write_json(directory / CONFIG, configuration.plain(config))


def check(directory: pathlib.Path, config: ml_collections.ConfigDict, needed_bytes: int) -> None:
    """What `claim` raises as far as it can be told without writing anything."""
    nearest = directory
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "no write permission" if nearest.is_dir() else f"{nearest} is a file"
        raise OSError(_cannot_write(directory, reason))
    path = directory / CONFIG
    if path.exists():
        _check_same(path, config)
        return
    strangers = [name for name in ("checkpoints", "metrics.jsonl") if (directory / name).exists()]
    if strangers:
        raise ValueError(
            f"workdir {directory}: holds {' and '.join(strangers)} but no {CONFIG}, so it cannot "
            "be told which run they belong to; choose an empty --workdir"
        )
    free = shutil.disk_usage(nearest).free
    if free < needed_bytes:
        raise OSError(
            f"workdir {directory}: expected {needed_bytes / 1e9:.2f} GB free for checkpoints, got "
            f"{free / 1e9:.2f} GB; free space, lower keep_checkpoints, or choose another --workdir"
        )


def _cannot_write(directory: pathlib.Path, reason: str) -> str:
    return (
        f"workdir {directory}: cannot be written ({reason}); choose another --workdir or free space"
    )


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def _check_writable(directory: pathlib.Path) -> None:
    probe = directory / ".writable"
    probe.write_bytes(b"\0" * 4096)
    probe.unlink()


def _check_same(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); choose another --workdir"
        ) from error
    changes = configuration.differences(saved, config)
    if changes:
        raise ValueError(
            f"workdir {path.parent} belongs to a run of another config (there -> here):\n  "
            + "\n  ".join(changes)
            + "\nUse the same values to resume it, or another --workdir for a new run."
        )
