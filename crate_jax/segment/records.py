"""What is kept of every image: its files, and the record that says they are all there.

    OUT/records/NAME.json   one an image, written last: an image with a record is done
    OUT/maps/NAME.npz, OUT/overlays/NAME.png, OUT/heads/NAME.png, OUT/previews/NAME.*, for parts
    OUT/features/NAME.npy, and of the first images OUT/explorer/NAME.npz

NAME is the image's path below the folder of images, with its suffix, so that no two collide.
"""

import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crate_jax.export.coco import write_json
from crate_jax.files import read, read_json, write_atomically
from crate_jax.store import Store, listing

COVERING = ("coco.json", "index.html", "failures.jsonl", "summary.json")
_WRITTEN = {
    "records": (".json",),
    "maps": (".npz",),
    "overlays": (".png",),
    "heads": (".png",),
    "previews": tuple(
        f".{caption}.{kind}" for caption in ("image", "overlay", "grey") for kind in ("png", "webp")
    ),
    "features": (".npy",),
    "explorer": (".npz",),
}
_DONE = {"height": int, "width": int, "confidences": list, "objects": list, "note": str}
_FAILED = {"kind": str, "message": str}


class Records(Store):
    """The results of a list of images.

    Args:
        out: the folder, made if needed.
        names: all images, in order, whoever works on them.
        settings: JSON-able; what the results depend on.
        share: (I, N), the I-th of N shares of the images, from 1.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        names: Sequence[str],
        settings: Mapping[str, Any],
        share: tuple[int, int] = (1, 1),
    ):
        settings = {**settings, "images": listing(names)}
        super().__init__(out, settings, share=share, covering=COVERING)
        self.names = list(names)

    def record(self, name: str) -> dict | None:
        """The record of an image, done or failed; None where there is none, or a damaged one."""
        try:
            found = read_json(self.path("records", name, ".json"))
        except (FileNotFoundError, ValueError):
            return None
        return found if _is_record(found, name) else None

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
        listed = sorted(path.relative_to(self.out).as_posix() for path in files)
        self._write_record(name, {**record, "files": listed})

    def explorable(self, name: str) -> dict[str, np.ndarray] | None:
        """What `explorer.pack` made of an image; None where it is not there, or damaged."""
        try:
            content = read(self.path("explorer", name, ".npz"))
            with np.load(io.BytesIO(content)) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def write_failure(self, name: str, kind: str, message: str) -> None:
        """Notes that an image could not be used. It is tried again at the next run."""
        self._write_record(name, {"failed": {"kind": kind, "message": message}})

    def write_features(self, name: str, features: np.ndarray) -> None:
        """Writes an image's features to OUT/features/NAME.npy, and forgets an earlier failure."""
        buffer = io.BytesIO()
        np.save(buffer, features)
        write_atomically(self.path("features", name, ".npy"), buffer.getvalue())
        if "failed" in (self.record(name) or {}):
            self.path("records", name, ".json").unlink()

    def remove_unfinished(self, names: Iterable[str]) -> None:
        """Removes what a killed process left of files of these images that it was writing."""
        kinds = [(kind, suffix) for kind, suffixes in _WRITTEN.items() for suffix in suffixes]
        self.remove_partial(self.path(kind, n, suffix) for n in names for kind, suffix in kinds)

    def _write_record(self, name: str, record: Mapping) -> None:
        write_json(self.path("records", name, ".json"), {"name": name, **record})


def _is_record(found: Any, name: str) -> bool:
    if not isinstance(found, dict) or found.get("name") != name:
        return False
    if "failed" in found:
        return _has(found["failed"], _FAILED)
    return _has(found, _DONE | {"files": list}) and all(isinstance(f, str) for f in found["files"])


def _has(found: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(name), kind) for name, kind in fields.items()
    )
