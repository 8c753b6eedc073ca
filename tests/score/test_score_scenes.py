"""`score --dataset=scenes`: both protocols, a series over a run's checkpoints, noise."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from crate_jax import inference
from crate_jax.convert import checkpoints
from crate_jax.data.scenes import Scenes
from crate_jax.files import Lock, write_atomically
from crate_jax.models import base
from crate_jax.score import measuring
from crate_jax.score.__main__ import main as score
from crate_jax.score.datasets import SceneInstances
from tests import workdirs

TWO = "--task=attention,maskcut"  # without the others, which test_score_tasks.py tries


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two checkpoints: steps 10 and 20, of different weights."""
    return workdirs.write(tmp_path_factory.mktemp("run"), (10, 20))


@pytest.fixture(scope="module")
def scored(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={out}", "--limit=5"]
    argv += ["--steps=all", "--noise=paper", "--samples=10", "--layers=-1", "--size=32", TWO]
    assert score(argv) == 0
    return out, json.loads((out / "scores.json").read_text())


def test_series_over_checkpoints_ends_with_the_newest(scored):
    _, result = scored
    assert list(result["steps"]) == ["10", "20"]
    name = "cls_iou/mass/best/layer02"
    assert result["steps"]["20"][name] == result["scores"][name]
    assert result["steps"]["10"][name] != result["scores"][name]


def test_masks_of_random_weights_stand_beside_the_networks(scored, workdir, tmp_path):
    out, result = scored
    network = inference.random_weights(inference.load(workdir), seed=0)
    untrained = tmp_path / "untrained.safetensors"
    checkpoints.save(base.merge(network.definition, network.params), untrained)
    argv = ["--dataset=scenes", f"--checkpoint={untrained}", f"--out={tmp_path / 'out'}"]
    argv += ["--limit=5", "--no-random", "--samples=10", "--size=32", "--task=maskcut"]
    assert score([*argv, f"--classes={result['settings']['classes']}"]) == 0
    alone = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    stem = "layer02/tau0.15"
    names = [f"{stem}/{kind}/{ap}" for kind in ("box", "mask") for ap in ("AP", "AP50")]
    for name in names:
        assert result["scores"][f"maskcut_random/{name}"] == alone[f"maskcut/{name}"]
    assert any(
        result["scores"][f"maskcut/{n}"] != result["scores"][f"maskcut_random/{n}"] for n in names
    )
    assert not [name for name in alone if "_random" in name]
    assert "2, 0.15, random weights" in (out / "index.html").read_text()


@pytest.fixture
def killed_after(monkeypatch):
    """Ends the process, as Ctrl-C does, when so many batches were kept; gives their paths."""

    def at(count):
        written = []

        def write(path, content):
            if len(written) == count:
                raise KeyboardInterrupt
            written.append(write_atomically(path, content))

        monkeypatch.setattr(measuring, "write_atomically", write)
        return written

    return at


@pytest.mark.parametrize(
    ("together", "tasks"), [(1, TWO), (2, "--task=corloc,saliency,knn,artifacts"), (16, TWO)]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    together, tasks, workdir, tmp_path, capsys, killed_after, monkeypatch
):
    def run(out, *extra):
        argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={tmp_path / out}"]
        argv += ["--limit=6", "--batch-size=2", "--samples=10", "--size=32", tasks, *extra]
        return score(argv)

    monkeypatch.setattr(measuring, "_TOGETHER", together)
    kept = killed_after(5)  # in the second pass, that of random weights
    assert run("killed") == 130
    assert "to go on" in capsys.readouterr().err
    assert len(kept) == 5
    foreign = tmp_path / "killed" / "measured" / "mine.txt"
    foreign.write_text("not ours")
    left = kept[-1].with_name(f".{kept[-1].name}.0123abcd.partial")
    left.write_text("half")
    kept[-1].write_bytes(kept[-1].read_bytes()[:70])  # damaged: measured again
    killed_after(-1)
    assert run("killed") == 0
    said = capsys.readouterr().out
    assert "trained   6 of 6 measured before" in said
    assert ("random    2 of 6 measured before" in said) == (together == 1)
    assert run("whole") == 0
    for name in ("scores.json", "index.html"):
        texts = [(tmp_path / out / name).read_bytes() for out in ("killed", "whole")]
        assert texts[0] == texts[1]
    ours = {"settings.json", "scores.json", "index.html"}
    assert {p.name for p in (tmp_path / "whole").iterdir()} == ours
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {*ours, "measured"}
    assert foreign.read_text() == "not ours"
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_the_batch_size_changes_nothing_but_rounding(workdir, tmp_path):
    """Above all not which image is the other."""
    found = []
    for size in (1, 2, 5):
        out = tmp_path / f"{size}"
        argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={out}", "--limit=5"]
        argv += [f"--batch-size={size}", "--samples=10", "--size=32", "--no-random", TWO]
        assert score(argv) == 0
        found.append(json.loads((out / "scores.json").read_text())["scores"])
    for scores in found[1:]:
        assert set(scores) == set(found[0])
        for name, estimate in scores.items():
            assert estimate["value"] == pytest.approx(found[0][name]["value"], abs=1e-5), name
    assert any(name.startswith("cls_iou_other/") for name in found[0])


def test_other_settings_are_refused_with_the_difference(workdir, tmp_path, capsys):
    def run(*extra):
        argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={tmp_path}", "--limit=2"]
        argv += ["--batch-size=1", "--samples=10", "--size=32", "--layers=-1", "--no-random", TWO]
        return score([*argv, *extra])

    assert run() == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    for other, change in (
        ("--step=10", "weights: "),
        ("--keep=0.5", "keep: 0.6 -> 0.5"),
        ("--taus=0.3", "taus: [0.15] -> [0.3]"),
        ("--seed=1", "seed: 0 -> 1"),
        ("--noise=paper", "noise: [] -> "),
        ("--limit=3", "images.count: 2 -> 3"),
    ):
        assert run(other) == 2, other
        assert change in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run() == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_ours_stays(workdir, tmp_path, capsys):
    argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={tmp_path}", "--limit=2"]
    (tmp_path / "scores.json").write_text("mine")
    assert score(argv) == 2
    assert "got scores.json in" in capsys.readouterr().err
    (tmp_path / "scores.json").unlink()
    with Lock(tmp_path / ".lock"):
        assert score(argv) == 2
    assert f"got process {os.getpid()} on" in capsys.readouterr().err
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "00000000.npz").write_text("mine")
    assert score([*argv, "--size=32", "--samples=10", "--no-random", "--layers=-1", TWO]) == 0
    assert (tmp_path / "measured" / "00000000.npz").read_text() == "mine"


def test_a_folder_whose_name_is_no_text(tiny, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"r\xe9sultats")
    argv = ["--dataset=scenes", f"--checkpoint={tiny}", f"--out={out}", "--limit=1"]
    assert score([*argv, "--size=32", "--samples=10", "--no-random", "--layers=-1", TWO]) == 0
    assert "scores.json" in capsys.readouterr().out
    assert (out / "index.html").is_file()


@pytest.mark.parametrize("layer", ["0", "-1"])
def test_a_network_that_gives_nan_is_an_error(layer, tiny, tmp_path, capsys):
    arrays = safetensors.numpy.load_file(tiny)
    arrays = {n: np.full_like(a, 3e38) if "qkv" in n else a for n, a in arrays.items()}
    broken = tmp_path / "broken.safetensors"
    safetensors.numpy.save_file(arrays, broken)
    argv = ["--dataset=scenes", f"--checkpoint={broken}", "--heads=3", "--image-size=32"]
    argv += [f"--out={tmp_path / 'out'}", "--limit=2", f"--layers={layer}"]
    assert score(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 0: ")
    assert "check the weights" in error
    assert not (tmp_path / "out" / "scores.json").exists()


def test_noise_has_the_papers_settings(scored):
    _, result = scored
    assert set(result["noise"]) == {
        *(f"sd {sd} on 50 %" for sd in (10, 25, 50, 75)),
        *(f"sd 75 on {part} %" for part in (10, 25, 75)),
    }
    name = "coding_rate/layer02"  # moves with any change of the input
    values = {found[name]["value"] for found in result["noise"].values()}
    assert len(values) == 7
    assert result["scores"][name]["value"] not in values


def test_page_and_settings(scored):
    out, result = scored
    page = (out / "index.html").read_text()
    for text in ("Robustness to noise", "Over the run", "MaskCut", "over steps", "<svg"):
        assert text in page
    settings = result["settings"]
    assert (settings["objects"], settings["limit"], settings["size"]) == ([1, 3], 5, [32, 32])
    assert settings["attention_layers"] == settings["mask_layers"] == [1]


def test_truth_of_scenes():
    data = SceneInstances(32, 20, (1, 3))
    scenes = Scenes("val", image_size=32, length=20, objects=(1, 3))
    truth = data.ground_truth(data.names)
    assert [image["id"] for image in truth["images"]] == list(range(1, 21))
    counts = [len(scenes.instances(i)["masks"]) for i in range(20)]
    assert len(truth["annotations"]) == sum(counts)
    assert max(counts) > 1
    for index in range(20):
        assert ((data.labels(str(index)) > 0) == scenes[index]["mask"]).all()


def test_wrong_usage(workdir, tiny, tmp_path, capsys):
    def run(*argv):
        return score([*argv, f"--out={tmp_path}"])

    assert run("--dataset=scenes", f"--checkpoint={tiny}", "--steps=all") == 2
    assert "directory of a run" in capsys.readouterr().err
    assert run("--dataset=scenes", f"--checkpoint={workdir}", "--steps=15", "--limit=2") == 2
    assert "expected some of the run's [10, 20], got [15]" in capsys.readouterr().err
    assert run("--dataset=voc", f"--root={tmp_path}", f"--checkpoint={tiny}") == 2
    assert "VOCtrainval" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--dataset=coco", f"--checkpoint={tiny}")
    assert "--root is needed" in capsys.readouterr().err
    for option in ("samples=0", f"samples={10**12}", f"max-masks={10**12}", "seed=-1", "seed=1e3"):
        with pytest.raises(SystemExit):
            run("--dataset=scenes", f"--checkpoint={tiny}", f"--{option}")
        name = option.partition("=")[0]
        assert f"argument --{name}: expected a whole number" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
