"""Images to maps, masks and overlays: each method, killed and resumed, in shards, odd files."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import skimage
from flax import nnx
from PIL import Image
from pycocotools.coco import COCO

import crate_jax
from crate_jax.convert import checkpoints
from crate_jax.models import variants
from crate_jax.segment import summary
from crate_jax.segment.records import Records
from crate_jax.segmentation import attention, maskcut
from tests.end_to_end import runs
from tests.end_to_end.segmenting import METHODS, PHOTOGRAPHS, contents, run
from tests.networks import draw


@pytest.fixture(scope="module")
def whole(checkpoint, photographs, tmp_path_factory):
    """Uninterrupted runs of each method."""
    outs = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    for method, out in outs.items():
        assert run(checkpoint, photographs, out, method) == 0
    return outs


@pytest.mark.slow
def test_killed_and_resumed_run_writes_the_same_bytes(checkpoint, photographs, whole, tmp_path):
    command = [sys.executable, "-m", "crate_jax.segment", f"--checkpoint={checkpoint}"]
    command += [f"--images={photographs}", f"--out={tmp_path}", "--method=maskcut"]
    command += ["--batch-size=2", *METHODS["maskcut"]]
    process = subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment())
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if sum(1 for _ in tmp_path.glob("records/**/*.json")) >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    records = tmp_path / "records"
    recorded = [path.relative_to(records).with_suffix("") for path in records.rglob("*.json")]
    done = [tmp_path / "maps" / f"{name}.npz" for name in recorded if not name.name.startswith(".")]
    done = {path: path.stat().st_mtime_ns for path in done}
    assert 0 < len(done) < len(PHOTOGRAPHS)
    assert not (tmp_path / "index.html").exists()

    assert run(checkpoint, photographs, tmp_path, "maskcut") == 0
    assert contents(tmp_path) == contents(whole["maskcut"])
    for path, before in done.items():
        assert path.stat().st_mtime_ns == before, f"{path} was done again"


@pytest.mark.parametrize("method", ["attention", "parts"])
def test_interrupted_run_goes_on(method, checkpoint, photographs, whole, tmp_path, monkeypatch):
    written, write = [], Records.write

    def write_five(self, *args):
        if len(written) >= 5:  # two threads write
            raise KeyboardInterrupt
        written.append(write(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", write_five)
        assert run(checkpoint, photographs, tmp_path, method) == 130
    assert 5 <= len(list(tmp_path.glob("records/**/*.json"))) < len(PHOTOGRAPHS)
    assert run(checkpoint, photographs, tmp_path, method) == 0
    assert contents(tmp_path) == contents(whole[method])


@pytest.mark.parametrize("method", METHODS)
def test_two_shards_together_equal_one(method, checkpoint, photographs, whole, tmp_path):
    assert run(checkpoint, photographs, tmp_path, method, "--shard=2/2") == 0
    counts = json.loads((tmp_path / "summary.json").read_text())
    assert counts["done"] == (0 if method == "parts" else 6)
    assert run(checkpoint, photographs, tmp_path, method, "--shard=1/2") == 0
    assert contents(tmp_path) == contents(whole[method])


def test_files_of_attention(photographs, whole):
    out = whole["attention"]
    with np.load(out / "maps" / "more" / "astronaut.png.npz") as arrays:
        maps, kept = arrays["maps"], arrays["kept"]
    assert maps.shape == kept.shape == (3, 8, 8)  # twice 32 px in patches of 8
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    assert (kept.sum((1, 2)) == round(0.6 * 64)).all()  # the area rule
    with Image.open(out / "overlays" / "more" / "astronaut.png.png") as overlay:
        assert overlay.size == Image.open(photographs / "more" / "astronaut.png").size
    assert (out / "heads" / "coffee.png.png").is_file()
    page = (out / "index.html").read_text()
    assert all(name in page for name in PHOTOGRAPHS)


def test_a_damaged_file_of_the_explorer_is_made_again(checkpoint, photographs, whole, tmp_path):
    shutil.copytree(whole["attention"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "explorer" / "coffee.png.npz").write_bytes(b"PK")
    (tmp_path / "explorer" / "brick.png.npz").unlink()
    assert run(checkpoint, photographs, tmp_path, "attention") == 0
    assert contents(tmp_path) == contents(whole["attention"])


@pytest.mark.parametrize("method", METHODS)
def test_the_explorer_holds_what_the_method_saw(method, whole):
    """Its maps and its cut are those of the files beside it."""
    out = whole[method]
    with np.load(out / "explorer" / "coffee.png.npz") as arrays:
        held = dict(arrays)
    page = (out / "index.html").read_text()
    assert len(list((out / "explorer").rglob("*.npz"))) == 12
    assert page.count('"query":') == 12
    settings = json.loads((out / "settings.json").read_text())
    layer = held["layers"].tolist().index(settings["layer"] + 1)
    w = held["query"][layer] * held["query_scale"][layer][:, None, None]
    with np.load(out / "maps" / "coffee.png.npz") as arrays:
        if method == "attention":
            maps = np.asarray(attention.cls_maps(w[None], w[None]))[0]
            np.testing.assert_allclose(maps.reshape(3, 8, 8), arrays["maps"], rtol=0.02)
        if method == "maskcut":
            bits = np.unpackbits(held["masks"]).reshape(len(held["layers"]), 20, 8, 8)
            np.testing.assert_array_equal(bits[layer, 4], arrays["masks"][0])  # tau = 0.2


def test_coco_file(photographs, whole):
    out = whole["maskcut"]
    names = sorted(p.relative_to(photographs).as_posix() for p in photographs.rglob("*.*"))
    found = COCO(out / "coco.json")
    assert [image["file_name"] for image in found.dataset["images"]] == names
    assert [image["id"] for image in found.dataset["images"]] == list(range(1, 13))
    assert found.anns
    for annotation in found.anns.values():
        image = found.imgs[annotation["image_id"]]
        with Image.open(photographs / image["file_name"]) as picture:
            assert (image["width"], image["height"]) == picture.size
        mask = found.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"]
    with np.load(out / "maps" / "coffee.png.npz") as arrays:
        masks, gaps = arrays["masks"], arrays["confidence"]
    image_id = 1 + names.index("coffee.png")
    objects = [a for a in found.anns.values() if a["image_id"] == image_id]
    assert [a["score"] for a in objects] == list(gaps[masks.any((1, 2))])


def test_maskcut_of_the_library_gives_the_same_masks(checkpoint, photographs, whole):
    """What the command line writes, put together by hand from the public functions."""
    image = Image.open(photographs / "coffee.png").convert("RGB")
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS))
    model = crate_jax.load(checkpoint)
    _, out = nnx.jit(lambda m, x: m(m.preprocess(x), capture=-1))(model, pixels[None])
    features = np.asarray(out["query"])[0, 0, 1:].reshape(64, -1)
    found = maskcut.maskcut(features, (8, 8), tau=0.2, max_masks=3)
    with np.load(whole["maskcut"] / "maps" / "coffee.png.npz") as arrays:
        np.testing.assert_array_equal(arrays["masks"], found.masks)
        np.testing.assert_allclose(arrays["confidence"], found.confidence, atol=1e-5)
    large = maskcut.full_resolution(found.masks[found.masks.any((1, 2))], image.size[::-1], 8)
    dataset = COCO(whole["maskcut"] / "coco.json")
    (number,) = [i for i, entry in dataset.imgs.items() if entry["file_name"] == "coffee.png"]
    objects = dataset.loadAnns(dataset.getAnnIds(number))
    assert len(objects) == len(large)
    for annotation, mask in zip(objects, large, strict=True):
        np.testing.assert_array_equal(dataset.annToMask(annotation), mask)


def test_crf_on_tokens_of_another_shape(checkpoint, photographs, tmp_path):
    extra = ["--crf", "--features=tokens", "--size=32x48", "--layer=0", "--save=npz", "--corrected"]
    assert run(checkpoint, photographs / "coffee.png", tmp_path, "maskcut", *extra) == 0
    with np.load(tmp_path / "maps" / "coffee.png.npz") as arrays:
        assert arrays["masks"].shape == (3, 4, 6)
        assert arrays["refined"].shape == (3, 32, 48)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["crf"], settings["features"], settings["layer"]) == (True, "tokens", 0)


def test_file_that_does_not_tell_its_heads(checkpoint, photographs, tmp_path, capsys):
    bare = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(checkpoint), bare)
    image = photographs / "coffee.png"
    assert run(bare, image, tmp_path / "out", "attention") == 2
    assert "heads" in capsys.readouterr().err
    for heads, head_dim in ((3, 8), (6, 4)):
        out = tmp_path / f"{heads}"
        extra = [f"--heads={heads}", "--image-size=32", "--head=1", "--layer=-1"]
        assert run(bare, image, out, "attention", *extra) == 0
        settings = json.loads((out / "settings.json").read_text())
        assert (settings["model"]["head_dim"], settings["layer"]) == (head_dim, 1)
        with np.load(out / "maps" / "coffee.png.npz") as arrays:
            assert arrays["maps"].shape == (heads, 8, 8)


def test_parts_are_colours_of_all_images_together(whole):
    files = sorted(whole["parts"].glob("maps/**/*.npz"))
    arrays = [dict(np.load(path)) for path in files]
    assert {a["rgb"].shape for a in arrays} == {(8, 8, 3)}
    paths = [whole["parts"] / "features" / p.relative_to(whole["parts"] / "maps") for p in files]
    tokens = np.stack([np.load(path.with_suffix(".npy")) for path in paths]).astype(np.float64)
    centred = (tokens - tokens.mean((0, 1))).reshape(-1, tokens.shape[-1])
    score = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]).reshape(-1, 8, 8)
    for number, (values, shown) in enumerate(zip(score, arrays, strict=True)):
        scaled = (values - values.min()) / np.ptp(values)  # over each image, not over all of them
        sign_is_other = np.abs(scaled - shown["first"]).max() > 1e-4
        np.testing.assert_allclose(
            shown["first"], 1 - scaled if sign_is_other else scaled, atol=1e-4, err_msg=str(number)
        )
        assert (shown["foreground"] >= (shown["first"] > 0.5)).all()  # and filled holes


def test_components_without_background_removal(checkpoint, photographs, tmp_path):
    """As the paper shows layers: the leading components of all tokens, none of them left out."""
    folder = photographs / "more"
    assert run(checkpoint, folder, tmp_path, "parts", "--keep-background", "--layer=0") == 0
    files = sorted(tmp_path.glob("maps/*.npz"))
    found = [dict(np.load(path)) for path in files]
    assert {name for arrays in found for name in arrays} == {"grey", "rgb"}
    paths = [tmp_path / "features" / f"{path.stem}.npy" for path in files]
    tokens = np.concatenate([np.load(path) for path in paths]).astype(np.float64)
    centred = tokens - tokens.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    scores = (left * scale)[:, :4]
    shown = np.stack([np.dstack([a["grey"], a["rgb"]]).reshape(-1, 4) for a in found])
    for k, values in enumerate(shown.reshape(-1, 4).T):
        expected = (scores[:, k] - scores[:, k].min()) / np.ptp(scores[:, k])
        errors = [np.abs(values - e).max() for e in (expected, 1 - expected)]  # either sign
        assert min(errors) < 1e-4
    overlay = np.asarray(Image.open(tmp_path / "overlays" / f"{files[0].stem}.png"))
    corner = np.round(255 * found[0]["rgb"][0, 0])
    np.testing.assert_array_equal(overlay[0, 0], corner)
    page = (tmp_path / "index.html").read_text()
    assert ": grey" in page
    assert "no object found" not in page


def test_other_settings_are_refused_with_the_difference(
    checkpoint, photographs, whole, tmp_path, capsys
):
    before = contents(whole["maskcut"])
    assert run(checkpoint, photographs, whole["maskcut"], "maskcut", "--tau=0.3") == 2
    assert "tau: 0.2 -> 0.3" in capsys.readouterr().err
    assert contents(whole["maskcut"]) == before
    other = tmp_path / "other.safetensors"
    checkpoints.save(draw(variants.config("crate-testing"), 1), other)
    assert run(other, photographs, whole["maskcut"], "maskcut") == 2
    assert "weights: " in capsys.readouterr().err


def test_the_network_that_was_taken_of_several_is_named(checkpoint, photographs, tmp_path, capsys):
    """Of a file with raw and averaged weights, timm's say, the first are the usual choice."""
    torch = pytest.importorskip("torch")
    state = safetensors.numpy.load_file(checkpoint)
    state = {name: torch.from_numpy(array) for name, array in state.items()}
    several = tmp_path / "several.pth"
    torch.save({"model": state, "model_ema": state}, several)
    extra = ["--heads=3", "--image-size=32"]
    image = photographs / "coffee.png"
    assert run(several, image, tmp_path / "out", "attention", *extra) == 0
    assert "read entry 'model'; others with a network: 'model_ema'" in capsys.readouterr().out


def test_zoo_of_images(checkpoint, tmp_path, capsys, monkeypatch):
    """Odd images are handled or listed."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    photo = Image.open(pathlib.Path(skimage.data_dir) / "coffee.png").resize((60, 40))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    photo.convert("L").save(zoo / "grey.png")
    photo.convert("CMYK").save(zoo / "cmyk.jpg")
    photo.convert("P").save(zoo / "palette with spaces #1.gif")
    photo.convert("RGBA").save(zoo / "alpha.png")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(zoo / "deep.png")
    photo.save(zoo / "upside.jpg", exif=rotated)
    photo.resize((1, 1)).save(zoo / "dot.png")
    photo.resize((500, 2)).save(zoo / "strip.png")
    Image.fromarray(np.full((50, 50, 3), 128, np.uint8)).save(zoo / "constant.png")
    (zoo / "empty.jpg").write_bytes(b"")
    (zoo / "text.png").write_text("not an image")
    (zoo / "torn.jpg").write_bytes((zoo / "cmyk.jpg").read_bytes()[:500])
    (zoo / "notes.txt").write_text("no image suffix")
    out = tmp_path / "out"
    assert run(checkpoint, zoo, out, "maskcut") == 1
    assert "failures.jsonl" in capsys.readouterr().out
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [pathlib.Path(f["path"]).name for f in failures] == ["empty.jpg", "text.png", "torn.jpg"]
    assert all(f["kind"] == "unreadable" and f["message"] for f in failures)
    counts = json.loads((out / "summary.json").read_text())
    assert (counts["images"], counts["done"], counts["failed"]) == (12, 9, 3)
    sizes = {
        i["file_name"]: (i["height"], i["width"]) for i in COCO(out / "coco.json").imgs.values()
    }
    assert sizes["upside.jpg"] == (60, 40)
    assert sizes["strip.png"] == (2, 500)
    assert "palette%20with%20spaces" not in (out / "index.html").read_text()  # embedded

    assert run(checkpoint, zoo, out, "maskcut", "--on-error=skip") == 0
    assert run(checkpoint, zoo, tmp_path / "stopped", "maskcut", "--on-error=stop") == 1
    stopped = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert (stopped["failed"], stopped["missing"] > 0) == (1, True)

    monkeypatch.setattr(summary, "_EMBEDDED", 0)  # as for a folder of thousands
    photo.save(zoo / "torn.jpg")  # repaired: done at the next run
    assert run(checkpoint, zoo, out, "maskcut") == 1
    assert json.loads((out / "summary.json").read_text())["failed"] == 2
    page = (out / "index.html").read_text()
    assert 'src="previews/palette%20with%20spaces%20%231.gif.overlay.png"' in page
    # The explorer above holds the first images in any case.
    assert not re.search(r'<div class="tile"><img[^>]* src="data:', page)


def test_images_without_an_object_are_counted(checkpoint, photographs, tmp_path):
    """No two patches have a cosine above tau: the graph has no cut."""
    assert run(checkpoint, photographs / "more", tmp_path, "maskcut", "--tau=0.999999") == 0
    counts = json.loads((tmp_path / "summary.json").read_text())
    assert (counts["done"], counts["without_mask"], counts["masks"]) == (4, 4, 0)
    assert (tmp_path / "index.html").read_text().count("no object found") == 4
    assert not json.loads((tmp_path / "coco.json").read_text())["annotations"]


@pytest.mark.parametrize("colour", [0, 255, (10, 200, 30)])
def test_an_image_of_one_colour_has_no_mask(colour, checkpoint, tmp_path):
    """Positions alone make its patches differ, and the graph has a cut."""
    (tmp_path / "images").mkdir()
    pixels = np.full((40, 50, 3), colour, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "blank.png")
    out = tmp_path / "out"
    assert run(checkpoint, tmp_path / "images", out, "maskcut") == 0
    counts = json.loads((out / "summary.json").read_text())
    assert (counts["done"], counts["without_mask"], counts["masks"]) == (1, 1, 0)
    assert not np.load(out / "maps" / "blank.png.npz")["masks"].any()
    assert "the image is of one colour" in (out / "index.html").read_text()
