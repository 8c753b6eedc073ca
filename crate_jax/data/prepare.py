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
counted only while unpacking; the archives' sizes stand in for that). All is written to OUT.partial,
class by class; run the same command again to go on after an interruption. OUT comes into being by
one rename when everything is there and counted, and holds `prepared.json` with the counts.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable

from rich.progress import Progress

from crate_jax import command_line
from crate_jax.data.decode import CorruptImage
from crate_jax.data.folders import Folder


@dataclasses.dataclass(frozen=True)
class Archives:
    """What the archives of ImageNet-1k (ILSVRC 2012) must be.

    The MD5 is that published with torchvision, the sizes are those that image-net.org serves.
    """

    train: str = "ILSVRC2012_img_train.tar"
    val: str = "ILSVRC2012_img_val.tar"
    devkit: str = "ILSVRC2012_devkit_t12.tar.gz"
    train_bytes: int = 147_897_477_120
    val_bytes: int = 6_744_924_160
    devkit_md5: str = "fa75699e90414af021442c21a62c3abf"
    classes: int = 1_000
    train_images: int = 1_281_167
    val_images: int = 50_000


def imagenet(tars: str, out: str, archives: Archives = Archives()) -> dict[str, int]:
    """Unpacks ImageNet-1k into `out`.

    Args:
      tars: folder of the three archives.
      out: folder to be made; must not exist.
      archives: what to expect; tests use small ones.

    Returns:
      Counts: `classes`, `train`, `val`.

    Raises:
      ValueError: an archive is missing or has another size or content, `out` exists, or the disk
        is too small; nothing has been written then.
    """
    paths = [os.path.join(tars, name) for name in (archives.train, archives.val, archives.devkit)]
    wanted = [f"{archives.train_bytes:,} bytes", f"{archives.val_bytes:,} bytes"]
    wanted.append(f"MD5 {archives.devkit_md5}")
    found = [f"{os.path.getsize(p):,} bytes" if os.path.isfile(p) else "no file" for p in paths]
    if os.path.isfile(paths[2]):
        with open(paths[2], "rb") as file:
            found[2] = f"MD5 {hashlib.file_digest(file, 'md5').hexdigest()}"
    if found != wanted:
        lines = [
            f"  {path}: expected {want}, found {got}"
            for path, want, got in zip(paths, wanted, found, strict=True)
            if got != want
        ]
        raise ValueError(
            "These are not the archives of ImageNet-1k:\n" + "\n".join(lines) + "\n"
            "Download them from https://image-net.org (an account is needed)."
        )
    labels, wnids = _validation_labels(paths[2])
    _check_count("validation labels in the development kit", archives.val_images, len(labels))
    _check_count("classes in the development kit", archives.classes, len(wnids))
    with tarfile.open(paths[0]) as train:
        tar_names = sorted(member.name for member in train)
    if tar_names != sorted(f"{wnid}.tar" for wnid in wnids):
        raise ValueError(
            f"{paths[0]} must hold one tar for each of the {archives.classes} classes of the "
            f"development kit; found {len(tar_names)} entries, the first {tar_names[:3]}."
        )
    partial = _start(out, needed=archives.train_bytes + archives.val_bytes)
    with Progress() as progress:
        task = progress.add_task("classes", total=archives.classes)
        with tarfile.open(paths[0]) as train:
            for member in train:
                folder = os.path.join(partial, "train", member.name.removesuffix(".tar"))
                _make_whole(folder, lambda to, member=member: _unpack_class(train, member, to))
                progress.advance(task)
        task = progress.add_task("validation images", total=archives.val_images)
        val = os.path.join(partial, "val")
        _make_whole(
            val, lambda to: _unpack_validation(paths[1], labels, to, lambda: progress.advance(task))
        )
    expected = {
        "classes": archives.classes,
        "train": archives.train_images,
        "val": archives.val_images,
    }
    return _finish(partial, out, expected)


def folder(
    source: str, out: str, val_fraction: float = 0.0, drop_corrupt: bool = False
) -> dict[str, int]:
    """Checks the images in class folders and lays them out in `out`.

    Args:
      source: as `root` of `folders.Folder`.
      out: folder to be made, on the same file system for hard links; must not exist.
      val_fraction: as of `folders.Folder`.
      drop_corrupt: leave out images that cannot be decoded, and list them in `out`/dropped.txt.

    Returns:
      Counts: `classes`, `train`, `val`.

    Raises:
      ValueError: the folders are mixed up, an image cannot be decoded, `out` exists.
    """
    parts = {split: Folder(source, split, val_fraction=val_fraction) for split in ("train", "val")}
    partial = _start(out, needed=0)
    dropped: list[str] = []
    with Progress() as progress:
        for split, images in parts.items():
            by_class: dict[str, list[int]] = {name: [] for name in images.class_names}
            for index in range(len(images)):
                by_class[os.path.basename(os.path.dirname(images.path(index)))].append(index)
            task = progress.add_task(split, total=len(images))
            for name, indices in by_class.items():
                target = os.path.join(partial, split, name)
                _make_whole(
                    target,
                    lambda to, images=images, indices=indices, target=target: _copy_sound(
                        images, indices, to, f"{target}.dropped"
                    ),
                )
                progress.advance(task, len(indices))
                if os.path.exists(listed := f"{target}.dropped"):
                    with open(listed, encoding="utf-8") as file:
                        dropped += file.read().splitlines()
    if dropped and not drop_corrupt:
        raise ValueError(
            f"{len(dropped)} images cannot be decoded:\n" + "\n".join(dropped[:20]) + "\n"
            "Replace them and remove " + partial + ", or leave them out with --drop_corrupt."
        )
    for split, images in parts.items():
        for name in images.class_names:
            if os.path.exists(listed := os.path.join(partial, split, f"{name}.dropped")):
                os.remove(listed)
    if dropped:
        with open(os.path.join(partial, "dropped.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(dropped) + "\n")
    images = sum(len(part) for part in parts.values())
    return _finish(partial, out, None, images - len(dropped))


def _start(out: str, needed: int) -> str:
    """Checks the target; returns the folder to work in, which may hold a part already."""
    out = out.rstrip("/")
    if os.path.exists(out):
        raise ValueError(f"{out} exists already. Remove it, or choose another --out.")
    partial = out + ".partial"
    parent = os.path.dirname(os.path.abspath(out))
    os.makedirs(parent, exist_ok=True)
    if not os.path.exists(partial):  # a part that is there already has taken its space
        free = shutil.disk_usage(parent).free
        if free < needed:
            raise ValueError(
                f"{parent} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed."
            )
        os.makedirs(partial)
    return partial


def _make_whole(target: str, make: Callable[[str], None]) -> None:
    """Makes a folder under another name and renames it when complete; does nothing if it exists."""
    if os.path.exists(target):
        return
    unfinished = target + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    make(unfinished)
    os.rename(unfinished, target)


def _finish(
    partial: str, out: str, expected: dict[str, int] | None, images: int | None = None
) -> dict[str, int]:
    """Counts what is there, compares, marks it as complete and gives it its name."""
    parts = {split: Folder(partial, split) for split in ("train", "val")}
    counts = {"classes": parts["train"].num_classes}
    counts |= {split: len(part) for split, part in parts.items()}
    for name, count in (expected or {}).items():
        _check_count(f"{name} in {partial}", count, counts[name])
    if images is not None:
        _check_count(f"images in {partial}", images, counts["train"] + counts["val"])
    with open(os.path.join(partial, "prepared.json"), "w", encoding="utf-8") as file:
        json.dump(counts, file)
    os.sync()  # the data reach the disk before the name does
    os.rename(partial, out.rstrip("/"))
    return counts


def _check_count(what: str, expected: int, got: int) -> None:
    if got != expected:
        raise ValueError(
            f"{what}: expected {expected:,}, got {got:,}. The source is damaged or another one; "
            "get it again, and remove the .partial folder if there is one."
        )


def _unpack_class(train: tarfile.TarFile, member: tarfile.TarInfo, to: str) -> None:
    with tarfile.open(fileobj=train.extractfile(member)) as images:
        _write_members(
            images, to, lambda name: name if re.fullmatch(r"n\d+_\d+\.JPEG", name) else None
        )


def _unpack_validation(path: str, labels: list[str], to: str, advance: Callable) -> None:
    def target(name: str) -> str | None:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            return None
        advance()
        return os.path.join(labels[int(match[1]) - 1], name)

    for wnid in set(labels):
        os.makedirs(os.path.join(to, wnid))
    with tarfile.open(path) as images:
        _write_members(images, to, target)


def _write_members(archive: tarfile.TarFile, to: str, target: Callable[[str], str | None]) -> None:
    """Writes the files of an archive where `target` says; no name of the archive is trusted."""
    for member in archive:
        place = target(member.name) if member.isfile() else None
        if place is None:
            raise ValueError(f"{archive.name or 'archive'} holds an unexpected {member.name!r}.")
        with archive.extractfile(member) as image, open(os.path.join(to, place), "wb") as file:
            shutil.copyfileobj(image, file)


def _validation_labels(devkit: str) -> tuple[list[str], list[str]]:
    """The WordNet id of every validation image in order, and of every class."""
    import scipy.io  # half a second that only this needs

    with tarfile.open(devkit) as archive:
        files = {os.path.basename(member.name): member for member in archive if member.isfile()}
        try:
            meta = archive.extractfile(files["meta.mat"])
            truth = archive.extractfile(files["ILSVRC2012_validation_ground_truth.txt"])
        except KeyError as error:
            raise ValueError(f"{devkit} lacks {error.args[0]}; download it again.") from error
        synsets = scipy.io.loadmat(meta, squeeze_me=True)["synsets"]
        numbers = [int(line) for line in truth.read().split()]
    leaves = synsets[synsets["num_children"] == 0]
    wnids = {
        int(number): str(wnid)
        for number, wnid in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)
    }
    return [wnids[number] for number in numbers], sorted(wnids.values())


def _copy_sound(images: Folder, indices: Iterable[int], to: str, listing: str) -> None:
    """Links or copies the images that decode into `to`; names the others in `listing`."""
    if os.path.exists(listing):  # of an attempt that was interrupted
        os.remove(listing)
    bad = []
    for index in indices:
        path = images.path(index)
        try:
            images[index]
        except CorruptImage:
            bad.append(path)
            continue
        target = os.path.join(to, os.path.basename(path))
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(path, target)
    if bad:
        with open(listing, "w", encoding="utf-8") as file:
            file.write("\n".join(bad) + "\n")


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
    options = vars(command_line.parse(parser, arguments))
    paths = ("tars", "source", "out")  # shells leave the ~ of --out=~/x alone
    options |= {name: os.path.expanduser(options[name]) for name in paths if name in options}
    prepare = {"imagenet": imagenet, "folder": folder}[options.pop("command")]

    def work() -> int:
        counts = prepare(**options)
        print(
            f"{options['out']}: {counts['classes']:,} classes, {counts['train']:,} training and "
            f"{counts['val']:,} validation images."
        )
        return 0

    stopped = "stopped; run the same command again to go on"
    return command_line.run(work, tarfile.TarError, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
