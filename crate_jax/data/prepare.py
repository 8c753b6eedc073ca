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

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from rich.progress import Progress

from crate_jax import command_line, files
from crate_jax.data import decode
from crate_jax.data.folders import Folder

_RECORD = "prepared.json"


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
        ValueError: an archive is missing or has another size or content, `out` exists and is not
            what would be made, another process makes it, or the disk is too small: nothing has been
            written then. Or a part of an archive is damaged: what came before it is in
            `out`.partial.
    """
    paths = _check_archives(tars, archives)
    labels, wnids = _validation_labels(paths[2])
    _check_count("validation labels in the development kit", archives.val_images, len(labels))
    _check_count("classes in the development kit", archives.classes, len(wnids))
    _check_classes(paths[0], wnids)
    expected = {
        "classes": archives.classes,
        "train": archives.train_images,
        "val": archives.val_images,
    }
    with files.Lock(f"{out.rstrip('/')}.lock"):
        source = dataclasses.asdict(archives)
        if _is_prepared(out, source, expected):
            return expected
        partial = _start(out, source, needed=archives.train_bytes + archives.val_bytes)
        with Progress() as progress:
            task = progress.add_task("classes", total=archives.classes)
            with _archive(paths[0]) as train:
                for member in train:
                    class_folder = os.path.join(partial, "train", member.name[: -len(".tar")])
                    _make_whole(class_folder, functools.partial(_unpack_class, train, member))
                    progress.advance(task)
            task = progress.add_task("validation images", total=archives.val_images)
            advance = functools.partial(progress.advance, task)
            unpack = functools.partial(_unpack_validation, paths[1], labels, advance)
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


def _check_archives(tars: str, archives: Archives) -> list[str]:
    """The paths of the three archives, whose sizes and sum fit."""
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
    return paths


def _check_classes(path: str, wnids: list[str]) -> None:
    """Raises ValueError unless the training archive holds one plain file for each class."""
    with _archive(path) as train:
        members = list(train)
    wanted = {f"{wnid}.tar" for wnid in wnids}
    got = {member.name for member in members if _is_plain(member)}
    if wanted != got or len(members) != len(wanted):
        odd = sorted((wanted ^ got) | {m.name for m in members if not _is_plain(m)})
        raise ValueError(
            f"{path}: expected one tar for each of the {len(wnids)} classes of the "
            f"development kit, got {len(members)} entries; missing, empty, no file or another: "
            f"{', '.join(odd[:3])}; download it again"
        )


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


@contextlib.contextmanager
def _archive(path: str, inner: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """A tar, whose damage is an error that names it; `inner` where it is a file in another."""
    try:
        with tarfile.open(path, "r:", inner) as archive:
            yield archive
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a whole tar, got a damaged one ({error}); download it again"
        ) from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    """A file with content: no link, and nothing sparse, which grows."""
    return member.isfile() and not member.issparse() and member.size > 0


def _unpack_class(train: tarfile.TarFile, member: tarfile.TarInfo, to: str) -> None:
    wnid = member.name[: -len(".tar")]

    def place(name: str) -> str | None:
        return name if re.fullmatch(rf"{wnid}_\d+\.JPEG", name) else None

    with _archive(f"{train.name} ({member.name})", train.extractfile(member)) as images:
        if not _write_members(images, to, place):
            raise ValueError(f"{images.name}: expected images, got none; download it again")


def _unpack_validation(path: str, labels: list[str], advance: Callable[[], None], to: str) -> None:
    def place(name: str) -> str | None:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            return None
        advance()
        return os.path.join(labels[int(match[1]) - 1], name)

    for wnid in set(labels):
        os.makedirs(os.path.join(to, wnid))
    with _archive(path) as images:
        _write_members(images, to, place)


def _write_members(archive: tarfile.TarFile, to: str, place: Callable[[str], str | None]) -> int:
    """Writes the files of an archive where `place` says, and counts them.

    No name, kind or size in the archive is trusted.
    """
    count = 0
    for member in archive:
        target = place(member.name) if _is_plain(member) else None
        if target is None:
            raise ValueError(
                f"{archive.name}: expected images of these classes alone, got an unexpected "
                f"{member.name!r} (of {member.size} bytes); download it again"
            )
        with archive.extractfile(member) as image, open(os.path.join(to, target), "xb") as file:
            shutil.copyfileobj(image, file)
        count += 1
    return count


def _validation_labels(devkit: str) -> tuple[list[str], list[str]]:
    """The WordNet id of every validation image in order, and of every class."""
    import scipy.io  # half a second that only this needs

    try:
        with tarfile.open(devkit, "r:gz") as archive:
            parts = {os.path.basename(m.name): m for m in archive if _is_plain(m)}
            meta = archive.extractfile(parts["meta.mat"])
            truth = archive.extractfile(parts["ILSVRC2012_validation_ground_truth.txt"])
            synsets = scipy.io.loadmat(meta, squeeze_me=True)["synsets"]
            numbers = [int(line) for line in truth.read().split()]
        leaves = synsets[synsets["num_children"] == 0]
        ids = zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)
        wnids = {int(number): str(wnid) for number, wnid in ids}
        labels = [wnids[number] for number in numbers]
    except Exception as error:  # SciPy raises anything on a damaged file
        raise ValueError(
            f"{devkit}: expected the development kit with its meta.mat and ground truth, got "
            f"{type(error).__name__}: {error}; download it again"
        ) from error
    if odd := [wnid for wnid in wnids.values() if not re.fullmatch(r"n\d+", wnid)]:
        raise ValueError(f"{devkit}: expected class ids such as n01440764, got {odd[0]!r}")
    return labels, sorted(wnids.values())


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
