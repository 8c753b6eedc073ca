"""What covers all images of a folder of results, made anew from their records.

    OUT/coco.json        all masks, as COCO reads them
    OUT/index.html       the gallery
    OUT/failures.jsonl   one line a failed image: path, kind, message
    OUT/summary.json     counts

Every process makes them when its share is done, of what is there by then. The last of several
shards finds everything, so its files are those of a single run.
"""

import collections
import dataclasses
import json
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from crate_jax.data import images
from crate_jax.export import coco, explorer, overlays, report
from crate_jax.files import read, read_json, write_atomically
from crate_jax.segment.records import Records
from crate_jax.store import printable

LOW_CONFIDENCE = 0.01
_EMBEDDED = 60  # images: a gallery of more links to files beside it, in place of holding them


@dataclasses.dataclass(frozen=True)
class Listed:
    """An image as an annotation file lists it."""

    id: int | str
    size: tuple[int, int] | None = None  # height, width; None where the file does not say


def listed(names: Sequence[str], annotations: str | os.PathLike | None) -> dict[str, Listed]:
    """Every image's COCO id, and the size that it is annotated at.

    Args:
        names: of all images, in order.
        annotations: a COCO annotation file that knows them by `file_name`, their path here or
            its last part; None numbers the images from 1 in their order.

    Raises:
        ValueError: an image that the file does not list, or of which it cannot be told which of
            several of one base name it is.
    """
    if annotations is None:
        return {name: Listed(number) for number, name in enumerate(names, start=1)}
    known = _annotated(annotations)
    by_base: dict[str, set[str]] = {}
    for name in known:
        by_base.setdefault(_base(name), set()).add(name)
    # An image that the file does not list by its path is the only one of its base name, here
    # and there, or it is not known which is meant.
    here = collections.Counter(map(_base, names))
    found, unknown, ambiguous = {}, [], []
    for name in names:
        candidates = {name} if name in known else by_base.get(_base(name), set())
        if not candidates:
            unknown.append(name)
        elif len(candidates) > 1 or (name not in known and here[_base(name)] > 1):
            ambiguous.append(f"{name} ({', '.join(sorted(candidates))} there)")
        else:
            (found[name],) = (known[candidate] for candidate in candidates)
    if unknown:
        raise ValueError(
            f"annotations: expected all images listed in {annotations}, got {len(known)} there, "
            f"but not {len(unknown)} of {len(names)} here, the first {printable(unknown[0])}"
        )
    if ambiguous:
        raise ValueError(
            f"annotations: expected one image of a name, got {printable(ambiguous[0])} and "
            f"{len(ambiguous) - 1} more of several; name them in {annotations} by their paths "
            "below --images"
        )
    return found


def _annotated(path: str | os.PathLike) -> dict[str, Listed]:
    """The images of a COCO annotation file by `file_name`."""
    try:
        images = read_json(os.path.expanduser(path))["images"]
        known = {str(image["file_name"]): Listed(image["id"], _size(image)) for image in images}
        ids = {one.id for one in known.values()}
        if odd := [i for i in ids if not isinstance(i, int | str)]:
            raise ValueError(f"the id {odd[0]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"annotations: expected a COCO annotation file with images of file_name and id at "
            f"{path}, got {type(error).__name__}: {error}"
        ) from error
    if not len(ids) == len(known) == len(images):
        raise ValueError(
            f"annotations: expected a file_name and an id for each image of {path}, got "
            f"{len(known)} names and {len(ids)} ids for {len(images)} images"
        )
    return known


def _size(image: Mapping) -> tuple[int, int] | None:
    if "height" not in image and "width" not in image:
        return None
    height, width = size = image["height"], image["width"]
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"height {height!r} and width {width!r} of {image['file_name']}")
    return size


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def collect(
    records: Records,
    ids: Mapping[str, int | str],
    folder: pathlib.Path,
    save: Sequence[str],
    say: Callable[[str], None] = print,
) -> dict:
    """Writes the files that cover all images; prints and returns the counts."""
    while True:
        found = {name: records.record(name) for name in records.names}
        summary = _write(records, found, ids, folder, save)
        # Another shard may have finished meanwhile: its last images must not be left out.
        if not any(found[name] is None and records.record(name) for name in found):
            break
    say(
        f"result    {summary['done']} of {summary['images']} images, {summary['masks']} masks; "
        f"{summary['without_mask']} without a mask, {summary['low_confidence']} of low confidence, "
        f"{summary['failed']} failed"
        + (f", {summary['missing']} missing" if summary["missing"] else "")
    )
    if summary["failed"]:
        say(f"failures  listed in {records.out / 'failures.jsonl'}")
    say(f"gallery   {records.out / 'index.html'}")
    return summary


def _write(records, found, ids, folder, save) -> dict:
    done = [r for r in found.values() if r is not None and "failed" not in r]
    failed = [r for r in found.values() if r is not None and "failed" in r]
    summary = {
        "images": len(found),
        "done": len(done),
        "failed": len(failed),
        "missing": len(found) - len(done) - len(failed),
        "masks": sum(len(record["confidences"]) for record in done),
        "without_mask": sum(not record["confidences"] for record in done),
        "low_confidence": sum(
            bool(record["confidences"]) and max(record["confidences"]) < LOW_CONFIDENCE
            for record in done
        ),
        "low_confidence_below": LOW_CONFIDENCE,
    }
    lines = [
        json.dumps({"path": printable(str(folder / record["name"])), **record["failed"]}) + "\n"
        for record in failed
    ]
    write_atomically(records.out / "failures.jsonl", "".join(lines))
    if "coco" in save:
        _write_coco(records.out / "coco.json", done, ids)
    _write_gallery(records, done, summary)
    write_atomically(records.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _write_coco(path: pathlib.Path, done: list[dict], ids: Mapping[str, int | str]) -> None:
    listed = [
        {
            "id": ids[record["name"]],
            "file_name": printable(record["name"]),
            "height": record["height"],
            "width": record["width"],
        }
        for record in done
    ]
    objects = [
        mask | {"image_id": ids[record["name"]]} for record in done for mask in record["objects"]
    ]
    coco.write_json(path, coco.dataset(listed, objects))


def _write_gallery(records: Records, done: list[dict], summary: Mapping) -> None:
    settings = records.settings
    embedded = len(done) <= _EMBEDDED
    none_found = "" if settings.get("keep_background") else "no object found"
    items = [
        {
            "name": printable(record["name"]),
            "panels": [
                (caption, _picture(records, file, embedded))
                for caption, file in _previews(record["files"])
            ],
            # Parts have none of their own: it is 1 for every foreground.
            "confidences": [min(1.0, value) for value in record["confidences"]]
            if settings["method"] != "parts"
            else [],
            "note": "; ".join(
                text
                for text in ("" if record["confidences"] else none_found, record["note"])
                if text
            ),
        }
        for record in done
    ]
    shown = [_explored(records, record) for record in done[: explorer.MOST_IMAGES]]
    report.write_gallery(
        records.out / "index.html",
        title=f"{settings['method']} on {len(records.names)} images",
        items=items,
        settings=settings,
        facts={
            "images": str(summary["done"]),
            "masks": str(summary["masks"]),
            "without a mask": str(summary["without_mask"]),
            "failed": str(summary["failed"]),
        },
        explored=[one for one in shown if one],
        first_layer=settings["layer"] + 1,
    )


def _explored(records: Records, record: Mapping) -> dict | None:
    """An image as the explorer shows it; None where nothing was stored of it."""
    packed = records.explorable(record["name"])
    if packed is None:
        return None
    (preview,) = (file for caption, file in _previews(record["files"]) if caption == "image")
    picture = _picture(records, preview, embedded=True)
    return {"name": printable(record["name"]), "picture": picture, "packed": packed}


def _previews(files: Sequence[str]):
    """(caption, file) of an image's previews, the image itself first."""
    for caption in ("image", "grey", "overlay"):
        for file in files:
            if file.startswith("previews/") and file.rsplit(".", 2)[1] == caption:
                yield caption, file


def _picture(records: Records, file: str, embedded: bool) -> np.ndarray | str:
    if not embedded:
        return urllib.parse.quote(file, errors="surrogateescape")
    path = records.out / file
    if path.suffix == ".png":  # small: shown as pixels
        return images.read(path).pixels
    return overlays.data_uri(read(path), "webp")
