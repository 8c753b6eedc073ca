"""`score --dataset=scenes`: both protocols, a series over a run's checkpoints, noise."""

import json

import numpy as np
import pytest

from crate_jax.data.scenes import Scenes
from crate_jax.models import base, variants
from crate_jax.score.__main__ import main as score
from crate_jax.score.datasets import SceneInstances
from crate_jax.score.findings import Store
from crate_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two checkpoints: steps 10 and 20, of different weights."""
    directory = tmp_path_factory.mktemp("run")
    config = variants.config("crate-testing")
    (directory / "config.json").write_text(json.dumps({"model": config.to_dict()}))
    checkpoints = Checkpoints(directory, keep=5)
    for step in (10, 20):
        params = base.split(variants.build(config, step))[1]
        checkpoints.save(step, params, {"count": np.zeros(1)}, {}, {})
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def scored(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={out}", "--limit=5"]
    argv += ["--steps=all", "--noise=paper", "--samples=10", "--layers=-1", "--size=32"]
    assert score(argv) == 0
    return out, json.loads((out / "scores.json").read_text())


def test_series_over_checkpoints_ends_with_the_newest(scored):
    _, result = scored
    assert list(result["steps"]) == ["10", "20"]
    name = "cls_iou/mass/best/layer02"
    assert result["steps"]["20"][name] == result["scores"][name]
    assert result["steps"]["10"][name] != result["scores"][name]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(workdir, tmp_path, capsys):
    def run(out, *extra):
        argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={tmp_path / out}"]
        argv += ["--limit=6", "--batch-size=2", "--samples=10", "--size=32", *extra]
        return score(argv)

    written, content = Store.write, {}

    def killed(self, start, batch):
        if len(content) == 5:  # in the second pass, that of random weights
            raise KeyboardInterrupt
        written(self, start, batch)
        content[self.folder / f"{start:08d}.npz"] = batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", killed)
        assert run("killed") == 130
    assert "to go on" in capsys.readouterr().err
    assert len(content) == 5
    *_, last = content
    last.write_bytes(last.read_bytes()[:70])  # damaged: measured again
    assert run("killed") == 0
    said = capsys.readouterr().out
    assert "trained   6 of 6 measured before" in said
    assert "random    4 of 6 measured before" in said
    assert run("whole") == 0
    for name in ("scores.json", "index.html"):
        texts = [(tmp_path / out / name).read_bytes() for out in ("killed", "whole")]
        assert texts[0] == texts[1]
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {"scores.json", "index.html"}


def test_other_settings_never_meet_what_was_kept(workdir, tmp_path, capsys, monkeypatch):
    def run(*extra):
        argv = ["--dataset=scenes", f"--checkpoint={workdir}", f"--out={tmp_path}", "--limit=2"]
        argv += ["--batch-size=1", "--samples=10", "--size=32", "--layers=-1", "--no-random"]
        return score([*argv, *extra])

    written = Store.write

    def once(self, start, batch):
        if start:
            raise KeyboardInterrupt
        written(self, start, batch)

    monkeypatch.setattr(Store, "write", once)
    assert run() == 130
    for other in ("--step=10", "--keep=0.5", "--taus=0.3", "--seed=1", "--noise=paper"):
        assert run(other) == 130
        before = "1 of 2 measured before" in capsys.readouterr().out
        assert before == (other == "--noise=paper"), other


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
    assert not list(tmp_path.iterdir())
