"""The official archives of ImageNet-1k: what they must be, and what is taken out of them.

No name, kind or size in an archive is trusted.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from typing import IO


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


OFFICIAL = Archives()


def check_files(tars: str, archives: Archives) -> list[str]:
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
            f"{tars}: expected the archives of ImageNet-1k, got others:\n"
            + "\n".join(lines)
            + "\ndownload them from https://image-net.org (an account is needed)"
        )
    return paths


def check_classes(path: str, wnids: list[str]) -> None:
    """Raises ValueError unless the training archive holds one plain file for each class."""
    with opened(path) as train:
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


@contextlib.contextmanager
def opened(path: str, inner: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
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


def unpack_class(train: tarfile.TarFile, member: tarfile.TarInfo, to: str) -> None:
    """Writes the images of a class, a tar in the training archive, into a folder."""
    wnid = member.name[: -len(".tar")]

    def place(name: str) -> str | None:
        return name if re.fullmatch(rf"{wnid}_\d+\.JPEG", name) else None

    with opened(f"{train.name} ({member.name})", train.extractfile(member)) as images:
        if not _write_members(images, to, place):
            raise ValueError(f"{images.name}: expected images, got none; download it again")


def unpack_validation(path: str, labels: list[str], advance: Callable[[], None], to: str) -> None:
    """Writes the validation images into folders of their classes; `advance` after each."""

    def place(name: str) -> str | None:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            return None
        advance()
        return os.path.join(labels[int(match[1]) - 1], name)

    for wnid in set(labels):
        os.makedirs(os.path.join(to, wnid))
    with opened(path) as images:
        _write_members(images, to, place)


def _write_members(archive: tarfile.TarFile, to: str, place: Callable[[str], str | None]) -> int:
    """Writes the files of an archive where `place` says, and counts them."""
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


def validation_labels(devkit: str) -> tuple[list[str], list[str]]:
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
