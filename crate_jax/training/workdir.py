"""The directory of a run: of one config, held by one run at a time, writable, with room."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import ml_collections

from crate_jax.config import differences, plain
from crate_jax.convert.run_directory import CONFIG, complete_steps
from crate_jax.files import Lock, read_json, write_atomically
from crate_jax.training import metrics


@contextlib.contextmanager
def claim(
    directory: pathlib.Path, config: ml_collections.ConfigDict, needed_bytes: int
) -> Iterator[Lock]:
    """Makes the directory this config's own, or finds that it already is, and holds it.

    Args:
        directory: made where it does not exist.
        config: resolved; written to config.json at the first claim.
        needed_bytes: free space that the run will want.

    Returns:
        A context with the lock by which other runs are refused while this one lasts.

    Raises:
        ValueError: where another run is at work in it, or the directory holds a run of another
            config (the message shows the difference), a run without its checkpoints, or files of
            something else.
        OSError: where it cannot be written or the disk has too little room.
    """
    check(directory, config, needed_bytes)
    with contextlib.ExitStack() as opened:
        try:
            lock = opened.enter_context(Lock(directory / ".lock"))
            _check_writable(directory)
            # Its absence later on means that it was moved away (`_check_trained`).
            (directory / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(_cannot_write(directory, error.strerror or str(error))) from error
        if not (directory / CONFIG).exists():
            write_json(directory / CONFIG, plain(config))
        yield lock


def check(directory: pathlib.Path, config: ml_collections.ConfigDict, needed_bytes: int) -> None:
    """What `claim` raises as far as can be seen without writing anything."""
    try:
        os.fspath(directory).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"workdir {str(directory)!a}: expected a name in UTF-8, which checkpoints need; "
            "choose another --workdir"
        ) from error
    nearest = directory
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "no write permission" if nearest.is_dir() else f"a file at {nearest}"
        raise OSError(_cannot_write(directory, reason))
    path = directory / CONFIG
    if path.exists():
        _check_same(path, config)
        _check_trained(directory)
        return
    leftovers = [name for name in ("checkpoints", "metrics.jsonl") if (directory / name).exists()]
    if leftovers:
        raise ValueError(
            f"workdir {directory}: expected {CONFIG} beside {' and '.join(leftovers)}, got none, "
            "so which run they belong to is not known; choose an empty --workdir"
        )
    free = shutil.disk_usage(nearest).free
    if free < needed_bytes:
        raise OSError(
            f"workdir {directory}: expected {needed_bytes / 1e9:.2f} GB free for checkpoints, got "
            f"{free / 1e9:.2f} GB; free space, lower keep_checkpoints, or choose another --workdir"
        )


def _cannot_write(directory: pathlib.Path, reason: str) -> str:
    return (
        f"workdir {directory}: expected a folder to write in, got {reason}; choose another "
        "--workdir or free space"
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
        saved = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected the config of a run, got no JSON ({error}); restore it from a "
            "backup, or choose another --workdir"
        ) from error
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path}: expected the config of a run, got {str(saved)[:40]!r}; restore it "
            "from a backup, or choose another --workdir"
        )
    changes = differences(saved, config)
    if changes:
        raise ValueError(
            f"workdir {path.parent}: expected the config of its run, got another (there -> here):"
            "\n  "
            + "\n  ".join(changes)
            + "\nUse the same values to resume it, or another --workdir for a new run."
        )


def _check_trained(directory: pathlib.Path) -> None:
    """Raises ValueError where a run would start over though one has trained here and saved."""
    path = directory / "metrics.jsonl"
    lines = metrics.read(path)
    if complete_steps(directory) or not any("train/loss" in line for line in lines):
        return
    found = f"none in {directory / 'checkpoints'}"
    damaged = directory / "damaged_checkpoints"
    if damaged.is_dir() and any(damaged.iterdir()):
        found += f", and damaged ones in {damaged}"
    elif (directory / "checkpoints").is_dir() and not _has_saved(lines):
        return  # killed before its first checkpoint was complete
    raise ValueError(
        f"workdir {directory}: expected the checkpoints of the {lines[-1]['step']} steps that "
        f"{path.name} tells of, got {found}; put whole ones back, or choose another --workdir to "
        "start over"
    )


def _has_saved(lines: list[dict]) -> bool:
    """Whether two saves were begun: the second waits until the first is complete.

    The seconds spent on saves grow within a process, and begin at 0 in the next.
    """
    spent = [line["time/checkpoint"] for line in lines if line.get("time/checkpoint") is not None]
    return sum(now > before for before, now in itertools.pairwise([0.0, *spent])) >= 2
