"""Segmenting: whose ids and files these are, two at work at once, and what is refused."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crate_jax.files import Lock
from crate_jax.segment import summary
from tests.end_to_end import runs
from tests.end_to_end.segmenting import contents, run


def test_ids_from_an_annotation_file(checkpoint, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # annotations are in the frame that is stored
    for name in ("000000000139.png", "000000000285.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / name, exif=turned)
    annotations = tmp_path / "instances.json"
    known = [{"id": int(p.stem), "file_name": p.name} for p in images.iterdir()]
    annotations.write_text(json.dumps({"images": known}))
    extra = f"--annotations={annotations}"
    assert run(checkpoint, images, tmp_path / "out", "maskcut", extra, "--save=coco") == 0
    found = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["id"] for image in found["images"]] == [139, 285]
    assert {(image["height"], image["width"]) for image in found["images"]} == {(20, 30)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("coco.json", "index.html", "failures.jsonl", "summary.json", "settings.json"),
        *("records", "previews", "explorer"),
    }
    annotations.write_text(json.dumps({"images": known[:1]}))
    assert run(checkpoint, images, tmp_path / "out", "maskcut", extra, "--save=coco") == 2


@pytest.mark.parametrize(
    ("names", "known", "ids"),
    [
        (["a.jpg", "b.jpg"], {"a.jpg": 3, "b.jpg": 4}, [3, 4]),
        (["a.jpg"], {"val/a.jpg": 3, "val/b.jpg": 4}, [3]),
        (["val/a.jpg"], {"a.jpg": 3}, [3]),
        (["a.jpg", "val/a.jpg"], {"a.jpg": 3, "val/a.jpg": 4}, [3, 4]),
        (["a.jpg"], {"train/a.jpg": 3, "val/a.jpg": 4}, "expected one image of a name, got a.jpg"),
        (["a.jpg", "val/a.jpg"], {"val/a.jpg": 4}, "expected one image of a name, got a.jpg"),
        (["x/a.jpg", "y/a.jpg"], {"a.jpg": 4}, "expected one image of a name, got x/a.jpg"),
        (["a.jpg"], {"b.jpg": 4}, "not 1 of 1 here, the first a.jpg"),
        (["a.jpg"], {"a.jpg": 4, "b.jpg": 4}, "2 names and 1 ids for 2 images"),
        (["a.jpg"], {"a.jpg": [4]}, "TypeError"),
    ],
)
def test_an_id_that_could_be_anothers_is_refused(names, known, ids, tmp_path):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [{"file_name": n, "id": i} for n, i in known.items()]}))
    if isinstance(ids, str):
        with pytest.raises(ValueError, match=ids):
            summary.listed(names, file)
    else:
        assert [summary.listed(names, file)[name].id for name in names] == ids


@pytest.mark.parametrize("identity", ["null", "NaN", "1.5", "[1]"])
def test_ids_that_no_result_could_carry(identity, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(f'{{"images": [{{"file_name": "a.jpg", "id": {identity}}}]}}')
    with pytest.raises(ValueError, match="expected a COCO annotation file with images of"):
        summary.listed(["a.jpg"], file)


def test_an_image_of_another_size_than_its_annotation_fails(checkpoint, tmp_path):
    """As in `score`: its masks would lie elsewhere in the annotated image."""
    images, out, annotations = (tmp_path / name for name in ("images", "out", "instances.json"))
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / name)
    known = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}]
    known += [{"id": 2, "file_name": "b.png", "height": 30, "width": 20}]
    annotations.write_text(json.dumps({"images": known}))
    extra = (f"--annotations={annotations}", "--save=coco")
    assert run(checkpoint, images, out, "attention", *extra) == 1
    (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert failure["message"] == "the image is (20, 30), its annotation says (30, 20)"
    found = json.loads((out / "coco.json").read_text())
    assert [image["id"] for image in found["images"]] == [1]
    known[1] |= {"height": 20, "width": 30}
    annotations.write_text(json.dumps({"images": known}))
    assert run(checkpoint, images, out, "attention", *extra) == 0
    assert (out / "failures.jsonl").read_text() == ""
    known[1] |= {"width": "30"}
    annotations.write_text(json.dumps({"images": known}))
    assert run(checkpoint, images, out, "attention", *extra) == 2


def test_results_of_another_frame_are_not_gone_on_with(checkpoint, photographs, tmp_path, capsys):
    """Without annotations images are turned by their orientation; ids do not make these fit."""
    image, annotations = photographs / "coffee.png", tmp_path / "instances.json"
    annotations.write_text(json.dumps({"images": [{"id": 3, "file_name": "coffee.png"}]}))
    out = tmp_path / "out"
    assert run(checkpoint, image, out, "attention") == 0
    assert run(checkpoint, image, out, "attention", f"--annotations={annotations}") == 2
    assert "frame" in capsys.readouterr().err


def test_results_among_the_photographs_are_refused(checkpoint, photographs, tmp_path, capsys):
    """They would be taken for photographs the next time."""
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    (tmp_path / "link").symlink_to(folder)
    before = contents(tmp_path)
    for out in (folder, folder / "more" / "results", tmp_path / "link" / "results"):
        assert run(checkpoint, folder, out, "attention") == 2
        assert "expected a folder outside of --images" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_only_files_of_ones_own_are_removed(checkpoint, photographs, tmp_path):
    folder = photographs / "more"
    name = min(path.name for path in folder.iterdir())
    left = [f"maps/.{name}.npz.01234567.partial", ".index.html.01234567.partial"]
    kept = [".movie.mkv.partial", "maps/.movie.npz.01234567.partial", "maps/.x.partial"]
    (tmp_path / "maps").mkdir()
    for file in (*left, *kept):
        (tmp_path / file).touch()
    assert run(checkpoint, folder, tmp_path, "attention") == 0
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.partial")}
    assert found == set(kept)


def test_two_at_once_on_one_share_are_refused(checkpoint, photographs, tmp_path, capsys):
    """Two shares of one division are not: that is what they are for."""
    with Lock(tmp_path / ".lock"):
        for extra in ([], ["--shard=1/2"]):
            assert run(checkpoint, photographs, tmp_path, "attention", *extra) == 2
            assert f"got process {os.getpid()} on" in capsys.readouterr().err
    with Lock(tmp_path / ".lock-2-of-2"):
        for share in ("2/2", "1/3", "1/1"):
            assert run(checkpoint, photographs, tmp_path, "attention", f"--shard={share}") == 2
        assert run(checkpoint, photographs, tmp_path, "attention", "--shard=1/2") == 0
    assert run(checkpoint, photographs, tmp_path, "attention", "--shard=2/2") == 0
    assert not list(tmp_path.glob(".lock*"))


def test_a_folder_of_something_else_is_refused(checkpoint, photographs, tmp_path, capsys):
    (tmp_path / "index.html").write_text("a page of mine")
    assert run(checkpoint, photographs, tmp_path, "attention") == 2
    assert "got index.html in" in capsys.readouterr().err
    assert contents(tmp_path) == {"index.html": b"a page of mine"}
    (tmp_path / "index.html").unlink()
    (tmp_path / "settings.json").write_text("[1]")
    assert run(checkpoint, photographs, tmp_path, "attention") == 2
    assert "expected settings as JSON" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "coffee.png", "failed": 3}'])
def test_a_damaged_record_is_made_again(content, checkpoint, photographs, tmp_path):
    image = photographs / "coffee.png"
    assert run(checkpoint, image, tmp_path, "attention") == 0
    before = contents(tmp_path)
    (tmp_path / "records" / "coffee.png.json").write_text(content)
    assert run(checkpoint, image, tmp_path, "attention") == 0
    assert contents(tmp_path) == before


def test_names_that_are_no_text(checkpoint, photographs, tmp_path):
    """Bytes that are not UTF-8, in the name of an image and of the folder of results."""
    name, out = (os.fsdecode(text) for text in (b"caf\xe9.png", b"r\xe9sultats"))
    (tmp_path / "images").mkdir()
    shutil.copy(photographs / "coffee.png", tmp_path / "images" / name)
    command = [sys.executable, "-m", "crate_jax.segment", f"--checkpoint={checkpoint}"]
    command += [f"--images={tmp_path / 'images'}", f"--out={tmp_path / out}", "--method=attention"]
    environment = runs.environment() | {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=runs.ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"gallery " in done.stdout
    assert (tmp_path / out / "overlays" / f"{name}.png").is_file()


def test_threads_that_are_not_granted_are_one_line(
    checkpoint, photographs, tmp_path, capsys, monkeypatch
):
    def refused(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refused)
    assert run(checkpoint, photographs, tmp_path, "attention") == 2
    assert capsys.readouterr().err == (
        "error: can't start new thread; allow more processes (ulimit -u)\n"
    )


def test_wrong_usage(checkpoint, photographs, tmp_path, capsys):
    for extra, text in (
        ("--layer=2", "expected an index in [-2, 2)"),
        ("--size=8", "at least two patches"),
        ("--head=3", "expected an index in [0, 3) or mean"),
        ("--heads=2", "heads"),
    ):
        assert run(checkpoint, photographs, tmp_path, "attention", extra) == 2
        assert text in capsys.readouterr().err
    for extra in ("--shard=0/2", "--save=gif", "--keep=60", "--tau=1", "--batch-size=0"):
        with pytest.raises(SystemExit):
            run(checkpoint, photographs, tmp_path, "attention", extra)
    assert run(checkpoint, tmp_path / "nothing", tmp_path, "attention") == 2
    assert "found nothing at" in capsys.readouterr().err
    assert not contents(tmp_path)
