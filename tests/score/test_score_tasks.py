"""The tasks beside [CLS] attention and MaskCut on small folders, counted by hand."""

import json

import jax
import numpy as np
import pytest

from crate_jax import inference
from crate_jax.models import base
from crate_jax.score import tasks
from crate_jax.score.__main__ import main as score
from crate_jax.segmentation import discovery
from tests import networks
from tests.data import discovery_layouts as layouts

SIZE = (40, 56)  # 5 x 7 patches of 8


@pytest.fixture
def run(tiny, tmp_path, capsys):
    def scores(*argv, code=0):
        out = tmp_path / "out"
        common = [f"--checkpoint={tiny}", f"--out={out}", "--samples=10", "--size=32"]
        assert score([*argv, *common, f"--root={tmp_path}"]) == code
        said = capsys.readouterr()
        return (json.loads((out / "scores.json").read_text()), said.out) if not code else said.err

    return scores


@pytest.fixture
def finds_two_patches(monkeypatch):
    """TokenCut and LOST find the four patches in the top left corner: 16 x 16 px."""

    def found(features, grid, *_):
        mask = np.zeros(grid, bool)
        mask[:2, :2] = True
        return discovery.Discovered(mask, discovery.box_of(mask), 0, False)

    monkeypatch.setattr(discovery, "tokencut", found)
    monkeypatch.setattr(discovery, "lost", found)


@pytest.mark.parametrize(("name", "year"), [("voc07", 2007), ("voc12", 2012)])
def test_corloc_of_voc_by_hand(name, year, run, tmp_path, finds_two_patches):
    # Pixel edges of (1, 1, 16, 16) are 0, 0, 16, 16: a hit. Of height 33: 256 / 528, none.
    objects = {
        "a": [(1, 1, 16, 16, 0)],
        "b": [(1, 1, 16, 33, 0), (40, 1, 56, 40, 0)],
        "c": [(1, 1, 16, 32, 1)],  # exactly a half, which counts but for the 1e-7 in the union
        "d": [(1, 1, 16, 31, 1)],
    }
    layouts.voc_boxes(tmp_path, year, objects, SIZE)
    result, said = run(f"--dataset={name}", "--task=corloc", "--no-random")
    assert result["scores"]["corloc/tokencut"]["value"] == 2 / 4
    assert result["scores"]["corloc/lost"]["value"] == 2 / 4
    assert result["scores"]["corloc/whole_image"]["value"] == 0
    assert {"voc07": "68.8", "voc12": "72.1"}[name] in said
    assert "published are" in said
    assert result["settings"]["tasks"]["corloc"]["tau"] == 0.2


def test_difficult_boxes_and_images_left_without_can_be_left_out(run, tmp_path, finds_two_patches):
    objects = {"a": [(1, 1, 16, 16, 1)], "b": [(1, 1, 16, 33, 0)], "c": [(1, 1, 16, 16, 0)]}
    layouts.voc_boxes(tmp_path, 2007, objects, SIZE)
    argv = ["--dataset=voc07", "--task=corloc", "--no-random", "--without-difficult"]
    assert run(*argv)[0]["scores"]["corloc/tokencut"]["value"] == 1 / 2


def test_corloc_of_coco20k_by_hand(run, tmp_path, finds_two_patches):
    boxes = {36: [(0.4, 0.4, 15.2, 15.2)], 9: [(20, 20, 16, 16)], 12: []}
    layouts.coco20k(tmp_path, boxes, SIZE, crowd=(36, 9))
    result, said = run("--dataset=coco20k", "--task=corloc", "--no-random")
    assert result["scores"]["corloc/tokencut"]["value"] == 1 / 2  # 12 holds no object
    # Another image: the box of 36 on the object of 9, and that of 9 on 36's.
    assert result["scores"]["corloc_other/tokencut"]["value"] == 1 / 2
    assert "not the published list" in said
    assert "58.8" in said


@pytest.mark.parametrize("name", layouts.SALIENCY)
def test_saliency_by_hand(name, run, tmp_path, finds_two_patches):
    one, two = np.zeros((2, *SIZE), np.uint8)
    one[:16, :16] = 255
    two[:16, :32] = 255
    two[20, 20] = 7  # an edge: the object for TokenCut's code, not for FOUND's
    layouts.saliency(tmp_path, name, {"a": one, "b": two})
    scores = run(f"--dataset={name}", "--task=saliency", "--no-random")[0]["scores"]
    pixels = SIZE[0] * SIZE[1]
    expected = {
        "tokencut/iou": (1 + 256 / 513) / 2,
        "found/iou": (1 + 256 / 512) / 2,
        "tokencut/accuracy": (1 + (pixels - 257) / pixels) / 2,
        # Of the second: P 1, R 256 / 513.
        "tokencut/max_f_of_set": (1 + 1.3 * (256 / 513) / (0.3 + 256 / 513)) / 2,
        "found/max_f_of_image": (1 + 1.09 * 0.5 / (0.09 + 0.5)) / 2,
        "found/mae": (256 / pixels) / 2,
    }
    for metric, value in expected.items():
        found = scores[f"saliency/tokencut/{metric}"]["value"]
        assert found == pytest.approx(value, abs=1e-6), metric
    assert scores["saliency/all_ones/found/iou"]["value"] == pytest.approx(384 / pixels)


def test_patches_that_are_remembered_are_found_again(run, tmp_path):
    maps = {name: np.full((32, 32), label, np.uint8) for name, label in (("a", 3), ("b", 0))}
    maps["b"][:, 16:] = 255
    layouts.voc_patches(tmp_path, maps, maps)  # one seed, one photograph of a name in both
    result, said = run("--dataset=hummingbird", "--task=knn", "--neighbours=1", "--no-random")
    assert result["scores"]["knn/miou_identity"]["value"] == pytest.approx(2 / 21)
    assert result["scores"]["knn/miou_matched"]["value"] == pytest.approx(2 / 21)
    assert "32 patches of 2 images" in said


def test_more_neighbours_than_the_memory_holds_are_refused_before_work(run, tmp_path):
    maps = {"a": np.full((32, 32), 3, np.uint8)}
    layouts.voc_patches(tmp_path, maps, maps)
    argv = ["--dataset=hummingbird", "--task=knn", "--neighbours=17"]
    assert "at most 16 neighbours" in run(*argv, code=2)
    assert not (tmp_path / "out").exists()


def test_artifacts_are_those_of_the_tokens(run, tiny, tmp_path):
    layouts.saliency(tmp_path, "ecssd", {"a": np.zeros((32, 32), np.uint8)})
    result, _ = run("--dataset=ecssd", "--task=artifacts", "--no-random", "--outliers=fixed:3")
    network = inference.load(tiny)
    model = base.merge(network.definition, network.params)
    photograph = inference_input(tmp_path / "ECSSD" / "images" / "a.jpg")
    with jax.default_matmul_precision("highest"):
        _, out = networks.run(model, photograph[None], capture=True)
    norms = np.linalg.norm(np.asarray(out["tokens"])[:, 0, 1:], axis=-1)
    for layer, own in enumerate(norms, start=1):
        found = {
            name: result["scores"][f"artifacts/{name}/layer{layer:02d}"]["value"]
            for name in ("q50", "q100", "outliers", "cutoff")
        }
        expected = {"q50": np.median(own), "q100": own.max(), "outliers": (own > 3).mean()}
        assert found.pop("outliers") == pytest.approx(expected.pop("outliers"))
        assert found == pytest.approx(expected | {"cutoff": 3.0}, rel=0.03)  # to a bin
        assert f"artifacts/cls_mass/layer{layer:02d}" in result["scores"]


def inference_input(path):
    from crate_jax.data import images

    return images.read(path, upright=False).pixels


def test_one_forward_pass_serves_several_tasks(tiny):
    network = inference.load(tiny)
    rng = np.random.default_rng(0)
    inputs = list(rng.integers(0, 256, (3, 32, 32, 3), np.uint8))
    arrays = tasks.OwnSize(network, maps_layer=0)
    found = arrays(inputs, None)
    assert arrays(list(inputs), None) is found  # the same images, not their equals
    with jax.default_matmul_precision("highest"):
        batch, last = np.stack(inputs), network.config.depth - 1
        features = inference.patch_features(network, [last])(network.params, batch)
        maps = inference.cls_maps(network, [0])(network.params, batch)
    for row, (own, own_maps, grid) in enumerate(found):
        assert grid == (4, 4)
        np.testing.assert_allclose(own, features[row, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own_maps, maps[row, 0], rtol=1e-5)
    others = inference.random_weights(network, seed=1)
    assert not np.allclose(arrays(inputs, others.params)[0][0], found[0][0], atol=1e-3)
    again = arrays([np.flip(image) for image in inputs], others.params)
    assert not np.allclose(again[0][0], arrays(inputs, others.params)[0][0], atol=1e-3)


def test_tasks_that_a_set_does_not_allow_are_refused(run, tmp_path):
    layouts.saliency(tmp_path, "ecssd", {"a": np.zeros((32, 32), np.uint8)})
    error = run("--dataset=ecssd", "--task=corloc", code=2)
    assert "expected some of saliency, artifacts on ecssd, got corloc" in error


@pytest.mark.parametrize("argument", ["--task=corlok", "--outliers=mode"])
def test_unknown_words_are_refused(argument, run):
    with pytest.raises(SystemExit):
        run("--dataset=ecssd", argument)


def test_images_unlike_their_masks_are_counted(run, tmp_path):
    masks = {"a": np.zeros((32, 32), np.uint8), "b": np.zeros((32, 40), np.uint8)}
    _, truths = layouts.saliency(tmp_path, "ecssd", masks)
    layouts.grey(truths / "b.png", np.zeros((40, 32), np.uint8))
    argv = ["--dataset=ecssd", "--task=artifacts", "--no-random", "--on-error=skip"]
    result, said = run(*argv)
    assert result["counts"]["failed"] == 1
    assert "its mask (40, 32)" in said
