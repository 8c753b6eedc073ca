"""Results of a long command in one folder: of one set of settings, written whole, found again.

    OUT/settings.json        what every result here was made with
    OUT/KIND/NAME + suffix   results by name; a record says that all of its name is there
    OUT/.lock                the process at work, while it is (.lock-I-of-N: on a share)

A killed command, run again, finds what is done and goes on. Several processes may share the work,
each its own share; two at once on the same are refused, and so are other settings.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crate_jax.config import differences
from crate_jax.files import Lock, read_json, remove_partial, write_atomically

_LONGEST = 180  # bytes of a file name, of 255 that file systems take: suffixes come on top


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the content of an .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    # Its entries carry no time: all are dated 1980.
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def printable(name: str | os.PathLike) -> str:
    """A file name as text that UTF-8 can hold."""
    return os.fsencode(name).decode("utf-8", "replace")


def listing(names: Sequence[str]) -> dict[str, Any]:
    """Which items, for settings: how many, and a digest of their names in order."""
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    return {"count": len(names), "names": digest.hexdigest()[:16]}


class Store(contextlib.AbstractContextManager):
    """A folder of results, claimed by a set of settings and a share of the work: `with Store(...)`.

    Args:
        out: the folder, made if needed.
        settings: JSON-able; what the results depend on.
        share: (I, N), the I-th of N shares of the work, from 1.
        covering: names in the folder of the files that show all results.

    Raises:
        ValueError: on entering: the folder holds results of other settings (the message lists the
            differences) or of something else, or another process is at work on this share.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        settings: Mapping[str, Any],
        *,
        share: tuple[int, int] = (1, 1),
        covering: Sequence[str] = (),
    ):
        self.out, self.share = pathlib.Path(out), share
        self.settings = json.loads(json.dumps(settings))
        self._covering = [self.out / name for name in ("settings.json", *covering)]
        self._lock = Lock(self.out / _lock_name(share))

    def __enter__(self):
        self._check()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._lock)
            for other in self._others_at_work():
                with Lock(other):  # refused where its process lives, taken over where it is gone
                    pass
            if not self._check():
                write_atomically(self._covering[0], json.dumps(self.settings, indent=2) + "\n")
            undo.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        # Settings without a result, of a command that failed at once, would refuse a mended one.
        with contextlib.suppress(OSError):
            if {*os.listdir(self.out)} == {"settings.json", self._lock.path.name}:
                self._covering[0].unlink()
        self._lock.__exit__(*raised)

    def path(self, kind: str, name: str, suffix: str) -> pathlib.Path:
        """Where a result lies: OUT/KIND/NAME + suffix."""
        folder, _, last = name.rpartition("/")
        encoded = os.fsencode(last)
        if len(encoded) > _LONGEST:
            digest = hashlib.sha256(encoded).hexdigest()[:16]
            last = encoded[: _LONGEST - 17].decode("utf-8", "ignore") + "-" + digest
        return self.out / kind / folder / (last + suffix)

    def remove_partial(self, paths: Iterable[pathlib.Path]) -> None:
        """Removes what a killed process left when it wrote these files; no other of any kind.

        The files that cover all results are added where no other process can be writing them.
        """
        alone = self._covering if self.share == (1, 1) else []
        remove_partial([*paths, *alone])

    def remove(self, paths: Iterable[pathlib.Path]) -> None:
        """Removes results that are needed no more, and the folders that this leaves empty."""
        for path in paths:
            path.unlink(missing_ok=True)
            folder = path.parent
            with contextlib.suppress(OSError):  # not there, or something is in it
                while folder != self.out:
                    folder.rmdir()
                    folder = folder.parent

    def _check(self) -> bool:
        """Whether the folder has settings, which are then these.

        Raises:
            ValueError: it holds those of others, or results of something else.
        """
        path = self._covering[0]
        try:
            there = read_json(path)
        except FileNotFoundError:
            if strange := [covering.name for covering in self._covering if covering.exists()]:
                raise ValueError(
                    f"out: expected an empty folder or one with {path.name}, got "
                    f"{' and '.join(strange)} in {self.out}; choose another --out"
                ) from None
            return False
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise ValueError(
                f"out: expected settings as JSON, got something else in {path}; choose another "
                "--out"
            )
        if changes := differences(there, self.settings):
            raise ValueError(
                f"out: {self.out} holds results of other settings (there -> here):\n  "
                + "\n  ".join(changes)
                + "\nUse the same to resume, or choose another --out."
            )
        return True

    def _others_at_work(self) -> list[pathlib.Path]:
        """Locks of processes that divide the work otherwise: they might do what we do."""
        ours = _shares(_lock_name(self.share))
        found = [path for path in self.out.glob(".lock*") if _is_lock(path.name)]
        return [path for path in found if _shares(path.name) != ours]


def _lock_name(share: tuple[int, int]) -> str:
    return ".lock" if share == (1, 1) else f".lock-{share[0]}-of-{share[1]}"


def _shares(lock_name: str) -> str:
    """Into how many shares the work is divided by the process that holds a lock of this name."""
    return lock_name.rpartition("-of-")[2]


def _is_lock(name: str) -> bool:
    return name == ".lock" or (name.startswith(".lock-") and "." not in name[1:])
