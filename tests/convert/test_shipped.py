"""The networks that ship: packed from a run, loaded by name, refused where damaged."""

import json
import pathlib
import re

import numpy as np
import pytest

import crate_jax
import crate_jax.convert.run_directory
from crate_jax import inference
from crate_jax.convert import formats, shipped
from crate_jax.convert.__main__ import main


@pytest.fixture
def run(run_directory):
    """A run's directory with its metrics."""
    lines = [{"step": step, "train/loss": 3 / (1 + step)} for step in range(1, 41)]
    lines[9] |= {"val/top1": 0.25, "val/top1/low": 0.2, "val/top1/high": 0.3}
    lines[19] |= {"val/top1": 1 / 3, "val/top1/low": 0.3, "val/top1/high": 0.4}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_directory / "metrics.jsonl").write_text(text + '{"step": 41, "train')
    settings = json.loads((run_directory / "config.json").read_text()) | {"seed": 3}
    (run_directory / "config.json").write_text(json.dumps(settings))
    return run_directory


@pytest.fixture
def packed(run, tmp_path, monkeypatch, capsys):
    """A run packed by the documented command, and pinned as it says."""
    target = tmp_path / "scenes.safetensors"
    assert main([f"--source={run}", f"--target={target}", "--with-run"]) == 0
    (digest,) = re.findall("SHA-256 ([0-9a-f]{64})", capsys.readouterr().out)
    monkeypatch.setattr(shipped, "DIRECTORY", tmp_path)
    monkeypatch.setattr(shipped, "SHA256", {"scenes": digest})
    return target


def test_loads_by_its_name(packed, run):
    model, original = crate_jax.load("scenes"), crate_jax.load(run)
    assert model.config == original.config
    np.testing.assert_array_equal(model.cls_token[...], original.cls_token[...])
    assert inference.load("scenes").fingerprint == inference.load(run).fingerprint


def test_the_record_of_its_run(packed, run, capsys):
    record = shipped.run_of("scenes")
    assert record["step"] == 20
    assert record["config"] == json.loads((run / "config.json").read_text())
    assert record["scores"] == {"val/top1": 0.333333, "val/top1/low": 0.3, "val/top1/high": 0.4}
    assert [line["step"] for line in record["history"]] == list(range(1, 21))
    assert "val/top1/low" not in record["history"][9]
    assert main(["--inspect=scenes"]) == 0
    assert "seed 3 at step 20, val/top1 0.333" in capsys.readouterr().out


def test_long_curves_are_thinned(run):
    lines = [{"step": step, "train/loss": 1.0} for step in range(1, 5001)]
    lines[2499] |= {"val/top1": 0.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = crate_jax.convert.run_directory.record(run, 5000)
    steps = [line["step"] for line in record["history"]]
    assert len(steps) <= 103
    assert {1, 2500, 5000} <= set(steps)


def test_a_broken_installation_says_so(packed):
    packed.unlink()
    with pytest.raises(FileNotFoundError, match=r"the network that ships.*reinstall crate-jax"):
        crate_jax.load("scenes")


def test_a_damaged_file_is_refused(packed):
    content = bytearray(packed.read_bytes())
    content[-100] ^= 1
    packed.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected SHA-256 .* is damaged; reinstall"):
        crate_jax.load("scenes")


def test_a_path_of_that_name_is_not_the_name(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("./scenes", pathlib.Path("scenes")):
        with pytest.raises(FileNotFoundError, match="found no such file"):
            crate_jax.load(path)


def test_the_file_in_the_package_is_the_one_that_is_pinned():
    for name, digest in shipped.SHA256.items():
        file = shipped.DIRECTORY / f"{name}.safetensors"
        if not file.exists():
            pytest.skip("this checkout has no network yet")
        assert crate_jax.convert.run_directory.checksum(file) == digest
        assert shipped.run_of(name)["scores"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("run", "x.pth", "expected a target in .safetensors or .npz"),
        ("file", "x.safetensors", "expected a run's directory as source"),
    ],
)
def test_a_run_that_cannot_be_recorded(source, target, message, packed, run, tmp_path, capsys):
    path = run if source == "run" else packed
    status = main([f"--source={path}", f"--target={tmp_path / target}", "--with-run"])
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_file_without_its_run(packed, run, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert main([f"--source={run}", f"--target={plain}"]) == 0
    assert "run" not in formats.read(plain).declaration
    with pytest.raises(ValueError, match="--with-run"):
        shipped.run_of(plain)
