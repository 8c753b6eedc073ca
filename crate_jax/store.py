"""Results of many images in one folder: written whole, an image at a time, and found again.

    OUT/settings.json          what every result here was made with
    OUT/records/NAME.json      one an image, written last: an image with a record is done
    OUT/maps/NAME.npz, OUT/overlays/NAME.png, OUT/heads/NAME.png, OUT/previews/NAME/...

NAME is the image's path below the folder of images, with its suffix, so that no two collide.
Several processes (shards) may write to one folder, each its own images.
"""

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crate_jax import config as configuration
from crate_jax.export.coco import write_json
from crate_jax.files import write_atomically

_LONGEST = 180  # bytes of a file name, of 255 that file systems take: suffixes come on top


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the content of an .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # its entries carry no time: all are dated 1980
    return buffer.getvalue()


def printable(name: str) -> str:
    """A file name as text that UTF-8 can hold."""
    return os.fsencode(name).decode("utf-8", "replace")


class Records:
    """The results of a list of images.

    Args:
        out: the folder, made if needed.
        names: all images, in order, whoever works on them.
        settings: JSON-able; what the results depend on.

    Raises:
        ValueError: the folder holds results of other settings; the message lists the differences.
    """

    def __init__(self, out: str | os.PathLike, names: Sequence[str], settings: Mapping[str, Any]):
        self.out, self.names = pathlib.Path(out), list(names)
        listed = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape"))
        images = {"count": len(self.names), "names": listed.hexdigest()[:16]}
        self.settings = json.loads(json.dumps({**settings, "images": images}))
        path = self.out / "settings.json"
        if not path.exists():
            write_atomically(path, json.dumps(self.settings, indent=2) + "\n")
            return
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"out: {path} is not readable as JSON; choose another --out"
            ) from error
        changes = configuration.differences(there, self.settings)
        if changes:
            raise ValueError(
                f"out: {self.out} holds results of other settings (there -> here):\n  "
                + "\n  ".join(changes)
                + "\nUse the same to resume, or choose another --out."
            )

    def path(self, kind: str, name: str, suffix: str) -> pathlib.Path:
        """Where a result of an image lies: OUT/KIND/NAME + suffix."""
        folder, _, last = name.rpartition("/")
        encoded = os.fsencode(last)
        if len(encoded) > _LONGEST:
            digest = hashlib.sha256(encoded).hexdigest()[:16]
            last = encoded[: _LONGEST - 17].decode("utf-8", "ignore") + "-" + digest
        return self.out / kind / folder / (last + suffix)

    def record(self, name: str) -> dict | None:
        """The record of an image, done or failed; None where there is none yet."""
        try:
            return json.loads(self.path("records", name, ".json").read_text())
        except FileNotFoundError:
            return None

    def done(self, name: str) -> bool:
        """Whether an image has its record and every file that the record lists."""
        record = self.record(name)
        return (
            record is not None
            and "failed" not in record
            and all((self.out / file).is_file() for file in record["files"])
        )

    def write(self, name: str, record: Mapping, files: Mapping[pathlib.Path, bytes]) -> None:
        """Writes an image's files, then the record that lists them."""
        for path, content in files.items():
            write_atomically(path, content)
        listed = [path.relative_to(self.out).as_posix() for path in files]
        write_json(
            self.path("records", name, ".json"), {"name": name, **record, "files": sorted(listed)}
        )

    def write_failure(self, name: str, kind: str, message: str) -> None:
        """Notes that an image could not be used. It is tried again at the next run."""
        failed = {"kind": kind, "message": message}
        write_json(self.path("records", name, ".json"), {"name": name, "failed": failed})

    def remove_partial(self, names: Sequence[str] | None) -> None:
        """Removes what a killed process left of files that it was writing.

        Args:
            names: the images that no other process works on; None where there is no other.
        """
        kinds = ("records", "maps", "overlays", "heads", "previews", "features")
        mine = [str(self.path(kind, name, ".")) for kind in kinds for name in names or ()]
        for path in self.out.rglob(".*.partial"):
            target = str(path.with_name(path.name[1:]))
            if names is None or any(target.startswith(start) for start in mine):
                path.unlink(missing_ok=True)

    def write_features(self, name: str, features: np.ndarray) -> None:
        """Writes an image's features to OUT/features/NAME.npy, and forgets an earlier failure."""
        buffer = io.BytesIO()
        np.save(buffer, features)
        write_atomically(self.path("features", name, ".npy"), buffer.getvalue())
        if "failed" in (self.record(name) or {}):
            self.path("records", name, ".json").unlink()
