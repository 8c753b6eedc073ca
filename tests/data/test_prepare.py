import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from crate_jax import files
from crate_jax.data import archives, prepare
from crate_jax.data.folders import Folder

WNIDS = ("n00000007", "n00000003", "n00000005")  # not in the order of their numbers


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def tar_bytes(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def make_archives(folder, extra=None, replaced=None, devkit=None):
    """Three classes of four training images, six validation images.

    `extra` files are added to every class, `replaced` classes' archives are other bytes, and so are
    `devkit`'s files.
    """
    os.makedirs(folder)
    classes = {
        f"{wnid}.tar": tar_bytes(
            {f"{wnid}_{k}.JPEG": jpeg(10 * k) for k in range(4)} | (extra or {})
        )
        for wnid in WNIDS
    } | (replaced or {})
    write_tar(f"{folder}/ILSVRC2012_img_train.tar", classes)
    val = {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(k) for k in range(1, 7)}
    write_tar(f"{folder}/ILSVRC2012_img_val.tar", val)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    synsets = np.array([(k + 1, w, 0) for k, w in enumerate(WNIDS)] + [(9, "n9", 3)], kinds)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = b"3\n1\n2\n3\n1\n2\n"
    name = "ILSVRC2012_devkit_t12/data"
    kit = {
        f"{name}/meta.mat": meta.getvalue(),
        f"{name}/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    kit |= {f"{name}/{file}": content for file, content in (devkit or {}).items()}
    write_tar(f"{folder}/ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")
    with open(f"{folder}/ILSVRC2012_devkit_t12.tar.gz", "rb") as file:
        md5 = hashlib.md5(file.read()).hexdigest()
    return archives.Archives(
        train_bytes=os.path.getsize(f"{folder}/ILSVRC2012_img_train.tar"),
        val_bytes=os.path.getsize(f"{folder}/ILSVRC2012_img_val.tar"),
        devkit_md5=md5,
        classes=3,
        train_images=12,
        val_images=6,
    )


@pytest.fixture
def tars(tmp_path):
    folder = str(tmp_path / "tars")
    return folder, make_archives(folder)


def test_imagenet_is_unpacked_into_class_folders(tars, tmp_path):
    out = str(tmp_path / "imagenet")
    assert prepare.imagenet(tars[0], out, tars[1]) == {"classes": 3, "train": 12, "val": 6}
    train, val = Folder(out, "train"), Folder(out, "val")
    assert train.class_names == tuple(sorted(WNIDS))
    assert (len(train), len(val)) == (12, 6)
    # validation image 1 is of ILSVRC class 3, the third of WNIDS
    assert os.path.exists(f"{out}/val/{WNIDS[2]}/ILSVRC2012_val_00000001.JPEG")
    assert abs(int(val[5]["image"].mean()) - 5) <= 1  # 2 and 5 are of n00000007, the last in order
    with open(f"{out}/prepared.json") as file:
        source = dataclasses.asdict(tars[1])
        assert json.load(file) == {"source": source, "classes": 3, "train": 12, "val": 6}
    assert not os.path.exists(out + ".partial")


def test_an_interrupted_preparation_goes_on_and_never_looks_whole(tars, tmp_path, monkeypatch):
    out = str(tmp_path / "imagenet")
    original, calls = archives.unpack_class, []

    def fail_at_the_third(train, member, to):
        calls.append(member.name)
        original(train, member, to)
        if len(calls) == 3:
            os.remove(os.path.join(to, os.listdir(to)[0]))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "unpack_class", fail_at_the_third)
    with pytest.raises(OSError, match="No space"):
        prepare.imagenet(tars[0], out, tars[1])
    assert not os.path.exists(out)
    with pytest.raises(ValueError, match="no such folder"):
        Folder(out, "train")
    assert prepare.imagenet(tars[0], out, tars[1])["train"] == 12
    assert len(calls) == 4  # only the class that was not finished


@pytest.mark.parametrize("damage", ["missing", "short", "foreign", "few", "devkit"])
def test_archives_are_checked_before_work(tars, tmp_path, damage):
    folder, official = tars
    out = str(tmp_path / "imagenet")
    path = f"{folder}/ILSVRC2012_img_val.tar"
    match = rf"ILSVRC2012_img_val.tar: expected {official.val_bytes:,} bytes, found "
    if damage == "missing":
        os.remove(path)
        match += "no file"
    elif damage == "short":
        with open(path, "r+b") as file:
            file.truncate(100)
        match += "100 bytes"
    elif damage == "foreign":
        write_tar(f"{folder}/ILSVRC2012_img_train.tar", {"n9.tar": b""})
        size = os.path.getsize(f"{folder}/ILSVRC2012_img_train.tar")
        official = dataclasses.replace(official, train_bytes=size)
        match = "one tar for each of the 3 classes"
    elif damage == "few":
        official = dataclasses.replace(official, val_images=7)
        match = "validation labels.*expected 7, got 6"
    else:
        with open(f"{folder}/ILSVRC2012_devkit_t12.tar.gz", "ab") as file:
            file.write(b"x")
        match = "devkit_t12.tar.gz: expected MD5"
    with pytest.raises(ValueError, match=match):
        prepare.imagenet(folder, out, official)
    assert not os.path.exists(out)
    assert not os.path.exists(out + ".partial")


def test_a_wrong_count_is_not_given_its_name(tars, tmp_path):
    out = str(tmp_path / "imagenet")
    official = dataclasses.replace(tars[1], train_images=13)
    with pytest.raises(ValueError, match=r"train in .*expected 13, got 12"):
        prepare.imagenet(tars[0], out, official)
    assert not os.path.exists(out)


def test_names_in_an_archive_are_not_trusted(tmp_path):
    folder = str(tmp_path / "tars")
    official = make_archives(folder, extra={"../../evil.JPEG": b"x"})
    with pytest.raises(ValueError, match=r"unexpected '\.\./\.\./evil"):
        prepare.imagenet(folder, str(tmp_path / "out"), official)
    assert not list(tmp_path.rglob("evil*"))


def inner(kind="file", size=None):
    """A class's archive of one member that is no plain, whole, non-empty image of the class."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo(f"{WNIDS[0]}_7.JPEG")
        member.size = 0 if size is None else size
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    return file.getvalue()


def sparse():
    """A kilobyte that GNU tar unpacks to two gigabytes (old GNU format: one piece at the end)."""
    header = bytearray(inner(size=512))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (2 * 10**9 - 512, 512)
    header[483:495] = b"%011o\0" % (2 * 10**9)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected one tar for each .*n00000007\.tar"),
        (tar_bytes({}), r"\(n00000007\.tar\): expected images, got none"),
        (tar_bytes({f"{WNIDS[0]}_1.JPEG": jpeg(9)})[:700], "expected a whole tar, got a damaged"),
        (b"no archive " * 100, "expected a whole tar, got a damaged"),
        (inner("link"), r"unexpected 'n00000007_7\.JPEG'"),
        (inner(), r"unexpected 'n00000007_7\.JPEG' \(of 0 bytes\)"),
        (sparse(), r"unexpected 'n00000007_7\.JPEG' \(of 2000000000 bytes\)"),
        (tar_bytes({"n00000003_1.JPEG": jpeg(9)}), r"unexpected 'n00000003_1\.JPEG'"),
    ],
    ids=["nothing", "empty", "truncated", "foreign", "link", "zero", "sparse", "other class"],
)
def test_damage_inside_an_archive_is_one_line(tmp_path, capsys, monkeypatch, content, message):
    tars = str(tmp_path / "tars")
    official = make_archives(tars, replaced={f"{WNIDS[0]}.tar": content})
    monkeypatch.setattr(prepare.imagenet, "__defaults__", (official,))
    assert prepare.main(["imagenet", f"--tars={tars}", f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_link_in_place_of_a_class_is_refused_before_work(tmp_path):
    folder = str(tmp_path / "tars")
    official = make_archives(folder)
    with tarfile.open(f"{folder}/ILSVRC2012_img_train.tar", "w") as archive:
        for wnid in WNIDS:
            member = tarfile.TarInfo(f"{wnid}.tar")
            member.type, member.linkname = tarfile.SYMTYPE, "nowhere.tar"
            archive.addfile(member)
    size = os.path.getsize(f"{folder}/ILSVRC2012_img_train.tar")
    with pytest.raises(ValueError, match=r"one tar for each .* no file"):
        prepare.imagenet(
            folder, str(tmp_path / "out"), dataclasses.replace(official, train_bytes=size)
        )
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "devkit",
    [
        {"meta.mat": b"garbage " * 50},
        {"meta.mat": b""},
        {"ILSVRC2012_validation_ground_truth.txt": b"one\ntwo\n"},
        {"ILSVRC2012_validation_ground_truth.txt": b"77\n" * 6},
    ],
)
def test_broken_devkit_is_one_line_that_names_it(tmp_path, devkit):
    folder = str(tmp_path / "tars")
    official = make_archives(folder, devkit=devkit)
    with pytest.raises(ValueError, match=r"devkit_t12\.tar\.gz: expected the development kit"):
        prepare.imagenet(folder, str(tmp_path / "out"), official)
    assert not list(tmp_path.glob("out*"))


def test_whole_result_of_a_stopped_run_is_recognised(tars, tmp_path, capsys):
    out = str(tmp_path / "imagenet")
    counts = prepare.imagenet(tars[0], out, tars[1])
    assert prepare.imagenet(tars[0], out, tars[1]) == counts
    assert "is prepared already" in capsys.readouterr().out
    os.remove(Folder(out, "train").path(0))
    with pytest.raises(ValueError, match="exists already"):
        prepare.imagenet(tars[0], out, tars[1])


def test_two_at_once(tars, classes, tmp_path):
    out = str(tmp_path / "out")
    with files.Lock(f"{out}.lock"):
        with pytest.raises(ValueError, match=f"got process {os.getpid()} on"):
            prepare.imagenet(tars[0], out, tars[1])
        with pytest.raises(ValueError, match=f"got process {os.getpid()} on"):
            prepare.folder(str(classes), out, val_fraction=0.2)
    prepare.folder(str(classes), out, val_fraction=0.2)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def test_symbolic_links_are_followed(classes, tmp_path):
    """A hard link to a relative link dangles in its new place."""
    linked = tmp_path / "linked"
    for path in classes.rglob("*.jpg"):
        target = linked / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(path, target.parent))
    out = str(tmp_path / "out")
    assert prepare.folder(str(linked), out, val_fraction=0.2)["train"] == 8
    for split, count in (("train", 8), ("val", 2)):
        source = Folder(out, split)
        assert [os.path.islink(source.path(i)) for i in range(len(source))] == [False] * count
        assert source[0]["image"].shape == (8, 8, 3)


def test_odd_files_are_dropped_and_listed(classes, tmp_path):
    os.mkfifo(classes / "a" / "pipe.jpg")
    (classes / "a" / "zero.jpg").symlink_to("/dev/zero")
    (classes / "a" / "circle.jpg").symlink_to("circle.jpg")
    (classes / "b" / "line\nbreak.jpg").write_bytes(b"")
    out = str(tmp_path / "out")
    assert prepare.folder(str(classes), out, 0.2, drop_corrupt=True)["classes"] == 2
    assert len(pathlib.Path(out, "dropped.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize("made", ["elsewhere", "of another split", "by hand", "as a file"])
def test_a_part_of_something_else_is_not_mixed_in(made, classes, tmp_path, monkeypatch):
    """Names and counts may be the same: whose images they are would not be seen."""
    out, other = str(tmp_path / "out"), tmp_path / "other"
    partial = tmp_path / "out.partial"
    if made == "as a file":
        partial.write_text("")
    elif made == "by hand":
        (partial / "train" / "a").mkdir(parents=True)
        (partial / "train" / "a" / "0.jpg").write_text("another's")
    else:
        shutil.copytree(classes, other)
        source, fraction = (other, 0.2) if made == "elsewhere" else (classes, 0.4)
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "_finish", lambda *_: {})  # killed before
            prepare.folder(str(source), out, fraction)
        assert partial.is_dir()
    with pytest.raises(ValueError, match=r"out\.partial: expected a part of what is to be made"):
        prepare.folder(str(classes), out, 0.2)
    assert not os.path.exists(out)
    if made == "elsewhere":
        prepare.folder(str(other), out, 0.2)
        with pytest.raises(ValueError, match="it exists already"):
            prepare.folder(str(classes), out, 0.2)


@pytest.mark.parametrize("limit", [float("nan"), 0, -1.0, float("inf")])
def test_a_limit_that_is_none(limit, classes, tmp_path):
    with pytest.raises(ValueError, match="max_megapixels: expected a number above 0, got"):
        prepare.folder(str(classes), str(tmp_path / "out"), 0.2, max_megapixels=limit)


def test_out_inside_the_source_is_refused(classes):
    with pytest.raises(ValueError, match="--out: expected a folder outside of"):
        prepare.folder(str(classes), f"{classes}/out", 0.2)


@pytest.fixture
def classes(tmp_path):
    for name in "ab":
        (tmp_path / "source" / name).mkdir(parents=True)
        for k in range(5):
            (tmp_path / "source" / name / f"{k}.jpg").write_bytes(jpeg(20 * k))
    return tmp_path / "source"


def test_a_folder_is_checked_and_laid_out(classes, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["folder", f"--source={classes}", f"--out={out}", "--val_fraction=0.4"]
    assert prepare.main(arguments) == 0
    assert "2 classes, 6 training and 4 validation images" in capsys.readouterr().out
    held_out = Folder(str(classes), "val", val_fraction=0.4)
    names = [held_out.path(i).removeprefix(str(classes)) for i in range(4)]
    prepared = Folder(out, "val")
    assert [prepared.path(i).removeprefix(f"{out}/val") for i in range(4)] == names
    assert prepare.main(arguments) == 0  # stopped after the end, say: it is recognised
    assert "is prepared already" in capsys.readouterr().out
    (classes / "a" / "more.jpg").write_bytes(jpeg(9))
    assert prepare.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_corrupt_images_stop_it_or_are_listed(classes, tmp_path, capsys):
    bad = classes / "b" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    out = str(tmp_path / "out")
    arguments = ["folder", f"--source={classes}", f"--out={out}", "--val_fraction=0.4"]
    assert prepare.main(arguments) == 2
    assert str(bad) in capsys.readouterr().err
    assert not os.path.exists(out)
    assert prepare.main([*arguments, "--drop_corrupt"]) == 0  # goes on where it stopped
    assert len(Folder(out, "train")) + len(Folder(out, "val")) == 9
    with open(f"{out}/dropped.txt") as file:
        assert file.read() == f"{bad}\n"
    assert sorted(os.listdir(out)) == ["dropped.txt", "prepared.json", "train", "val"]
    assert sorted(os.listdir(f"{out}/train")) == ["a", "b"]
