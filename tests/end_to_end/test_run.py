"""One short run in this process: what it writes, evaluation alone, and errors before any work."""

import json
import re

import pytest

from crate_jax.config import plain
from crate_jax.training import loop
from tests.end_to_end import runs, tiny_config


def config(**changes):
    c = tiny_config.get_config("4")
    c.checkpoint_every = c.evaluate_every = "2 steps"
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (c[section] if section else c)[name] = value
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert loop.train(config(report=True, tensorboard=True), workdir) == 0
    return workdir


def test_files(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "report"}
    assert runs.checkpoint_steps(finished) == [2, 4]
    assert json.loads((finished / "config.json").read_text())["model"]["dim"] == 24
    assert list((finished / "tensorboard").iterdir())


def test_metric_names(finished):
    last = runs.metrics(finished)[-1]
    expected = {"val/object_fraction", "val/cls_iou_all_ones", "val/cls_iou_centre_box"}
    for layer in ("layer01", "layer02"):
        expected |= {f"val/coding_rate/{layer}", f"val/sparsity/{layer}"}
        for kind in ("", "_random", "_gain", "_other", "_own_minus_other"):
            stems = [f"cls_iou{kind}/mass", f"cls_iou{kind}/area"]
            stems += [f"cls_{measure}{kind}" for measure in ("auroc", "ap", "pointing")]
            for head in ("best", "mean", "fixed"):
                expected |= {f"val/{stem}/{head}/{layer}" for stem in stems}
    expected = {f"{name}{end}" for name in expected for end in ("", "/low", "/high")}
    expected |= {"step", "val/loss", "val/top1", "val/top5", "val/images"}
    assert set(last) == expected
    assert last["val/images"] == 24
    training = runs.metrics(finished)[-2]
    names = ["loss", "top1", "learning_rate", "gradient_norm", "parameter_norm", "update_norm"]
    assert set(training) == {"step", *(f"train/{name}" for name in names)}
    page = (runs.ROOT / "docs" / "training.md").read_text()
    stems = {re.split("/layer|/low|/high", name)[0] for name in expected | set(training)}
    for stem in stems - {"step"}:
        stem = re.sub("/(mass|area)", "/RULE", stem)
        stem = re.sub("/(best|mean|fixed)", "/HEAD", stem)
        assert f"`{stem}" in page, stem


def test_report_shows_the_run(finished):
    page = (finished / "report" / "index.html").read_text()
    assert page.count("data:image/") > 2 * 2 * 3  # images, layers, heads
    assert "CRATE on scenes" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_evaluation_alone_repeats_the_last_figures(finished, capsys):
    assert loop.evaluate(config(), finished) == 0
    alone = json.loads((finished / "eval.json").read_text())
    last = runs.metrics(finished)[-1]
    assert alone.keys() == last.keys()
    assert alone == pytest.approx(last, rel=1e-5, abs=1e-6)
    assert "val/top1" in capsys.readouterr().out


def test_evaluation_without_layers_in_a_home_folder(finished, monkeypatch):
    """No image to capture means no figure of a layer; a shell leaves --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(finished.parent))
    assert loop.evaluate(config(evaluation__capture_images=0), f"~/{finished.name}") == 0
    alone = json.loads((finished / "eval.json").read_text())
    assert set(alone) == {"step", "val/loss", "val/top1", "val/top5", "val/images"}
    assert alone["val/loss"] == pytest.approx(runs.metrics(finished)[-1]["val/loss"], rel=1e-5)


def test_finished_run_is_left_alone(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    assert loop.train(config(), finished) == 0
    assert "resumed  after step 4 of 4" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_text() == before


def test_another_config_is_refused_with_the_difference(finished):
    before = {p.name for p in finished.iterdir()}
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.001 -> 0.5"):
        loop.train(config(optimizer__learning_rate=0.5), finished)
    assert {p.name for p in finished.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 3, "accumulate": 2},
            "batch_size: expected a multiple of the 1 devices times 2",
        ),
        ({"fsdp": 3}, "fsdp: expected a divisor of the 1 devices, got 3"),
        (
            {"model__classes": 7},
            "model.classes: expected at least the 10 classes of the data, got 7",
        ),
        ({"model__patch_size": 5}, "image_size: expected multiples of patch_size 5"),
        ({"model__heads": 5}, "heads: expected a divisor of dim 24, got 5"),
        ({"data__image_size": 40}, "data.image_size: expected the model's 32 x 32, got 40"),
        ({"data__name": "scene"}, "scenes"),
        ({"remat": "some"}, "remat: expected one of none, full, dots"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: expected a whole number of at least 1"),
    ],
)
def test_errors_come_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError) as error:
        loop.train(config(**changes), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert loop.train(config(dry_run=True), tmp_path / "run") == 0
    assert not (tmp_path / "run").exists()
    output = capsys.readouterr().out
    assert "memory" in output
    assert "9,490 parameters" in output
    assert "layers/1/operator/dictionary" in output


def test_workdir_that_is_a_file_or_of_unknown_origin(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected a folder to write in"):
        loop.train(config(), tmp_path / "file")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"expected config.json beside metrics.jsonl, got none"):
        loop.train(config(), tmp_path)


def test_unknown_config_key_on_the_command_line(tmp_path):
    done = runs.run(tmp_path, "--config.optimizer.learning_rte=1", check=False)
    assert done.returncode == 2
    assert "unknown key learning_rte, did you mean learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr


def test_plain_config_is_json():
    assert json.loads(json.dumps(plain(config())))["steps"] == 4
