# PYTHON_ARGCOMPLETE_OK
"""Prepare class folders for training.

    python -m crate_jax.data.prepare imagenet --tars=DIR --out=DIR
    python -m crate_jax.data.prepare folder --source=DIR --out=DIR --val_fraction=0.1

The first unpacks ImageNet-1k from its three official archives into OUT/train/CLASS/*.JPEG and
OUT/val/CLASS/*.JPEG. The second takes class folders (see `folders.py` for the layouts), decodes
every image once, and puts those that are sound into the same layout, by hard links where the file
system allows, otherwise by copies; those that are not are an error, or with --drop_corrupt listed
in OUT/dropped.txt.

Names, sizes, counts and free disk space are checked before work (the images of ImageNet can be
counted only while unpacking; the archives' sizes stand in for that). All is written to OUT.partial;
run the same command again to go on after an interruption. OUT comes into being by one rename when
everything is there and counted, and holds `prepared.json` with its source and the counts; an
OUT.partial of another source is refused, not mixed with this one.
"""

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import Progress

from crate_jax import command_line, files
from crate_jax.data import archives, decode
from crate_jax.data.archives import OFFICIAL, Archives
from crate_jax.data.folders import Folder

_RECORD = "prepared.json"


def imagenet(tars: str, out: str, official: Archives = OFFICIAL) -> dict[str, int]:
    """Unpacks ImageNet-1k into `out`.

    Args:
        tars: folder of the three archives.
        out: folder to be made; must not exist.
        official: what to expect; tests use small ones.

    Returns:
        Counts: `classes`, `train`, `val`.

    Raises:
        ValueError: an archive is missing or has another size or content, `out` exists and is not
            what would be made, another process makes it, or the disk is too small: nothing has been
            written then. Or a part of an archive is damaged: what came before it is in
            `out`.partial.
    """
    paths = archives.check_files(tars, official)
    labels, wnids = archives.validation_labels(paths[2])
    _check_count("validation labels in the development kit", official.val_images, len(labels))
    _check_count("classes in the development kit", official.classes, len(wnids))
    archives.check_classes(paths[0], wnids)
    expected = {
        "classes": official.classes,
        "train": official.train_images,
        "val": official.val_images,
    }
    with files.Lock(f"{out.rstrip('/')}.lock"):
        source = dataclasses.asdict(official)
        if _is_prepared(out, source, expected):
            return expected
        partial = _start(out, source, needed=official.train_bytes + official.val_bytes)
        with Progress() as progress:
            task = progress.add_task("classes", total=official.classes)
            with archives.opened(paths[0]) as train:
                for member in train:
                    class_folder = os.path.join(partial, "train", member.name[: -len(".tar")])
                    unpack = functools.partial(archives.unpack_class, train, member)
                    _make_whole(class_folder, unpack)
                    progress.advance(task)
            task = progress.add_task("validation images", total=official.val_images)
            advance = functools.partial(progress.advance, task)
            unpack = functools.partial(archives.unpack_validation, paths[1], labels, advance)
            _make_whole(os.path.join(partial, "val"), unpack)
        return _finish(partial, out, source, expected)


def folder(
    source: str,
    out: str,
    val_fraction: float = 0.0,
    drop_corrupt: bool = False,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
) -> dict[str, int]:
    """Checks the images in class folders and lays them out in `out`.

    Args:
        source: as `root` of `folders.Folder`.
        out: folder to be made, on the same file system for hard links; must not exist.
        val_fraction, max_megapixels: as of `folders.Folder`.
        drop_corrupt: leave out images that cannot be decoded, and list them in `out`/dropped.txt.

    Returns:
        Counts: `classes`, `train`, `val`.

    Raises:
        ValueError: the folders are mixed up, an image cannot be decoded, or `out` exists and is not
            what would be made; nothing has been written then, or `out`.partial holds what is sound.
    """
    if os.path.realpath(out).startswith(os.path.join(os.path.realpath(source), "")):
        raise ValueError(
            f"--out: expected a folder outside of {source}, got {out}; choose another "
            "place, where no later run takes it for a class"
        )
    options = {"val_fraction": val_fraction, "max_megapixels": max_megapixels}
    parts = {split: Folder(source, split, **options) for split in ("train", "val")}
    made_of = {"folder": os.path.realpath(source), **options}
    with files.Lock(f"{out.rstrip('/')}.lock"):
        if os.path.isdir(out):
            expected, dropped = _expected(parts, out)
            if (drop_corrupt or not dropped) and _is_prepared(out, made_of, expected):
                return expected
        partial = _start(out, made_of, needed=0)
        with Progress() as progress:
            for split, images in parts.items():
                _copy_sound(images, split, partial, progress)
        expected, dropped = _expected(parts, partial)
        if dropped and not drop_corrupt:
            raise ValueError(
                f"{source}: expected images that can be decoded, got {len(dropped)} that cannot:\n"
                + "\n".join(dropped[:20])
                + "\nreplace them, or leave them out with --drop_corrupt; then run again to go on"
            )
        if dropped:
            listed = "".join(path.replace("\n", "\\n") + "\n" for path in dropped)
            files.write_atomically(os.path.join(partial, "dropped.txt"), os.fsencode(listed))
        return _finish(partial, out, made_of, expected)


def _expected(parts: dict[str, Folder], root: str) -> tuple[dict[str, int], list[str]]:
    """The counts of the source less those that `root` lacks, and the paths of these."""
    counts, dropped = {"classes": parts["train"].num_classes}, []
    for split, images in parts.items():
        there = _there(images, split, root)
        counts[split] = len(there)
        dropped += [images.path(index) for index in range(len(images)) if index not in there]
    return counts, dropped


def _is_prepared(out: str, source: Mapping[str, Any], expected: dict[str, int]) -> bool:
    """Whether `out` is what would be made: an earlier run was stopped only after it was whole."""
    whole = _record(out) == {"source": source, **expected} and _counts(out) == expected
    if whole:
        command_line.say(f"{out}: is prepared already, nothing to do")
    return whole


def _record(folder: str) -> Any:
    """Of what a folder is made, or being made; None where it does not say."""
    try:
        return files.read_json(os.path.join(folder, _RECORD))
    except (OSError, ValueError):
        return None


def _start(out: str, source: Mapping[str, Any], needed: int) -> str:
    """Checks the target; returns the folder to work in, which may hold a part of this already."""
    out = out.rstrip("/")
    if os.path.lexists(out):
        raise ValueError(f"{out}: expected a new folder, it exists already; remove or rename it")
    partial = out + ".partial"
    if os.path.lexists(partial):  # a part that is there already has taken its space
        if _record(partial) != {"source": source}:
            raise ValueError(
                f"{partial}: expected a part of what is to be made, got something else or of "
                "another source; remove it, or choose another --out"
            )
        return partial
    parent = os.path.dirname(os.path.abspath(out))
    os.makedirs(parent, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(
            f"{parent}: expected {needed / 1e9:.1f} GB free, got {free / 1e9:.1f} GB; choose "
            "another --out"
        )
    _make_whole(partial, functools.partial(_write_record, record={"source": source}))
    return partial


def _write_record(folder: str, record: Mapping[str, Any]) -> None:
    files.write_atomically(os.path.join(folder, _RECORD), json.dumps(record))


def _make_whole(target: str, make: Callable[[str], None]) -> None:
    """Makes a folder under another name and renames it when complete; does nothing if it exists."""
    if os.path.exists(target):
        return
    unfinished = target + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    try:
        make(unfinished)
    except OSError as error:
        if error.filename is None:  # a full disk says only that
            error.filename = unfinished
        raise
    os.rename(unfinished, target)


def _finish(
    partial: str, out: str, source: Mapping[str, Any], expected: dict[str, int]
) -> dict[str, int]:
    """Counts what is there, compares, marks it as complete and gives it its name."""
    counts = _counts(partial)
    for name, count in expected.items():
        _check_count(f"{name} in {partial}", count, counts[name])
    _write_record(partial, {"source": source, **counts})
    os.sync()  # the data reach the disk before the name does
    os.rename(partial, out.rstrip("/"))
    return counts


def _counts(root: str) -> dict[str, int]:
    parts = {split: Folder(root, split) for split in ("train", "val")}
    counts = {"classes": parts["train"].num_classes}
    return counts | {split: len(part) for split, part in parts.items()}


def _check_count(what: str, expected: int, got: int) -> None:
    if got != expected:
        raise ValueError(
            f"{what}: expected {expected:,}, got {got:,}; the source is damaged or another one: "
            "get it again, and remove the .partial folder if there is one"
        )


def _copy_sound(images: Folder, split: str, partial: str, progress: Progress) -> None:
    """Links or copies the images that decode and are not there yet."""
    for name in images.class_names:
        os.makedirs(os.path.join(partial, split, name), exist_ok=True)
    there = _there(images, split, partial)
    for index in progress.track(range(len(images)), description=split):
        if index in there:
            continue
        try:
            images[index]
        except decode.CorruptImage:
            continue
        _link(os.path.realpath(images.path(index)), _target(images, index, split, partial))


def _link(source: str, target: str) -> None:
    """`source`, which is no link itself (that would dangle when the folder moves), at `target`."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        unfinished = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.partial")
        shutil.copyfile(source, unfinished)
        os.replace(unfinished, target)


def _target(images: Folder, index: int, split: str, root: str) -> str:
    path = images.path(index)
    return os.path.join(
        root, split, os.path.basename(os.path.dirname(path)), os.path.basename(path)
    )


def _there(images: Folder, split: str, root: str) -> set[int]:
    """The images that `root` holds already."""
    indices = range(len(images))
    return {index for index in indices if os.path.exists(_target(images, index, split, root))}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_line.parser("python -m crate_jax.data.prepare", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("imagenet", help="unpack ImageNet-1k from its archives")
    command.add_argument("--tars", required=True, metavar="DIR", help="holds the three archives")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to be made")
    command = commands.add_parser("folder", help="check and lay out class folders")
    command.add_argument("--source", required=True, metavar="DIR", help="folder of class folders")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to be made")
    command.add_argument("--val_fraction", type=float, default=0.0, help="of every class")
    command.add_argument("--drop_corrupt", action="store_true", help="leave out, and list")
    command.add_argument(
        "--max_megapixels",
        type=float,
        default=decode.MAX_MEGAPIXELS,
        help="a larger image counts as corrupt",
    )
    options = vars(command_line.parse(parser, arguments))
    for name in {"tars", "source", "out"} & set(options):
        options[name] = os.path.expanduser(options[name])  # shells leave the ~ of --out=~/x alone
        if not options[name]:
            parser.error(f"--{name}: expected a folder, got nothing")
    prepare = {"imagenet": imagenet, "folder": folder}[options.pop("command")]

    def work() -> int:
        counts = prepare(**options)
        print(
            f"{options['out']}: {counts['classes']:,} classes, {counts['train']:,} training and "
            f"{counts['val']:,} validation images."
        )
        return 0

    stopped = "stopped; run the same command again to go on"
    return command_line.run(work, stopped=stopped, threads=0)


if __name__ == "__main__":
    sys.exit(main())
