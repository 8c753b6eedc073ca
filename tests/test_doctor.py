"""The doctor: each check against a faked environment, and one real run."""

import json
import os
import pathlib
import subprocess
import sys
import time
import tomllib

import cv2
import numpy as np
import pytest

from crate_jax import doctor
from crate_jax.doctor import Hardware, Result

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def versions(monkeypatch):
    """Installed versions by name; what is not named is not installed."""
    chosen = {}
    monkeypatch.setattr(doctor, "installed", chosen.get)
    return chosen


def statuses(found):
    return [result.status for result in found]


def test_a_failing_check_stops_no_other():
    def broken():
        raise RuntimeError("no such luck")
        yield

    found = list(doctor.examine([broken, lambda: [Result("a", "ok", "b")], lambda: []]))
    assert statuses(found) == ["note", "ok"]
    assert "RuntimeError: no such luck" in found[0].what


def test_small_shared_memory_and_disks(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 64 * 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    disk, shared = doctor.room(str(tmp_path / "not" / "there"), str(tmp_path))
    assert statuses([disk, shared]) == ["note", "note"]
    assert "--shm-size" in shared.remedy
    (tmp_path / "file").touch()
    assert next(doctor.room(str(tmp_path / "file" / "run"))).status == "problem"


def test_installation(versions):
    assert statuses(doctor.installation()) == ["note"]
    versions["crate-jax"] = "0.0.1"
    (mixed,) = doctor.installation()
    assert "two versions are mixed" in mixed.what
    versions["crate-jax"] = doctor.__version__
    assert statuses(doctor.installation()) == ["ok"]


@pytest.mark.parametrize(
    ("status", "out", "errors", "said"),
    [
        (0, "No broken requirements found.\n", "", ["ok"]),
        (1, "", "python: No module named pip", ["note"]),
        (1, "jax 0.10 has requirement numpy>=2, but you have numpy 1.26.\n", "", ["problem"]),
        (1, "spam 1 requires eggs, which is not installed.\njaxlib 1 is odd.\n", "", "np"),
    ],
)
def test_pip_check(status, out, errors, said, monkeypatch):
    done = subprocess.CompletedProcess([], status, out, errors)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    expected = ["note", "problem"] if said == "np" else said
    assert statuses(doctor.pip_check()) == expected


def test_extras_are_those_that_are_declared(versions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(doctor._EXTRAS) == set(project["optional-dependencies"])
    for extra, package in doctor._EXTRAS.items():
        asked = " ".join(project["optional-dependencies"][extra])
        known = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}.get(extra, package)
        assert known in asked
    versions["torch"] = "2.6.0"
    (found,) = doctor.extras()
    assert found.what == "here: torch; not here: wandb, cuda, tpu, notebook, docs, test, dev"
    assert found.remedy.startswith("where wanted: pip install ")


def test_clashes(versions):
    assert statuses(doctor.clashes()) == []
    versions |= {"opencv-python": "4.10", "opencv-python-headless": "4.10"}
    versions |= {"jax-cuda12-plugin": "0.10", "jax-cuda13-plugin": "0.10"}
    cuda, opencv = doctor.clashes()
    assert (cuda.status, "CUDA 12 and CUDA 13" in cuda.what) == ("problem", True)
    assert (opencv.status, "opencv-python" in opencv.remedy) == ("note", True)


@pytest.mark.parametrize(
    ("hardware", "variables", "expected"),
    [
        (Hardware(), {}, []),
        (Hardware(), {"JAX_PLATFORMS": "cpu"}, ["note"]),
        (Hardware(1), {"JAX_PLATFORMS": "cpu"}, ["problem"]),
        (Hardware(0, True), {"JAX_PLATFORMS": "cpu"}, ["problem"]),
        (Hardware(), {"JAX_PLATFORMS": "cuda,cpu"}, ["problem"]),
        (Hardware(1), {"JAX_PLATFORMS": "cuda"}, ["note"]),
        (Hardware(), {"JAX_PLATFORMS": "tpu"}, ["problem"]),
        (Hardware(1), {"CUDA_VISIBLE_DEVICES": ""}, ["problem"]),
        (Hardware(1), {"CUDA_VISIBLE_DEVICES": "0"}, []),
        (Hardware(1), {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}, ["note"]),
        (Hardware(), {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}, []),
    ],
)
def test_variables_that_hide_devices(hardware, variables, expected):
    assert statuses(doctor.platforms(hardware, variables)) == expected


def test_files_that_hide_packages(tmp_path):
    assert list(doctor.shadows(tmp_path)) == []
    assert list(doctor.shadows(ROOT)) == []
    (tmp_path / "jax.py").touch()
    (hidden,) = doctor.shadows(tmp_path)
    assert (hidden.status, "jax.py hides the package jax" in hidden.what) == ("problem", True)


def test_jax_without_its_plugin_beside_a_gpu(versions, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (found,) = doctor.devices(Hardware(2))
    assert found.status == "problem"
    assert "though this machine has 2 NVIDIA GPUs" in found.what
    assert "[cuda]" in found.remedy
    versions["jax-cuda13-plugin"] = "0.10.2"
    assert "driver" in doctor.mend(Hardware(1))
    assert "[tpu]" in doctor.mend(Hardware(0, True))
    versions["libtpu"] = "0.1"
    assert "may hold the TPU" in doctor.mend(Hardware(0, True))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert doctor.mend(Hardware(1)) == "unset JAX_PLATFORMS"


def test_the_loss_must_fall():
    assert doctor.judge([2.5, 1.5], [1.0, 0.1], "8 images").status == "ok"
    for last in (2.6, float("nan")):
        found = doctor.judge([2.5, last], [1.0, 0.1], "8 images")
        assert (found.status, "must fall" in found.what) == ("problem", True)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exec sleep 60", "importing packages did not end within 1 s"),
        ("echo boom >&2; exit 3", "importing packages ended the process with status 3. boom"),
    ],
)
def test_a_trial_that_hangs_or_dies(does, said, monkeypatch, tmp_path):
    """A stand-in tells what it is about to do, and a result, and then does not go on."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        '#!/bin/sh\necho \'{"stage": "importing packages"}\'\n'
        f'echo \'{{"topic": "import", "status": "problem", "what": "cv2"}}\'\n{does}\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(stand_in))
    start = time.monotonic()
    imported, ended = doctor.attempt(1.0, Hardware())
    assert time.monotonic() - start < 20
    assert (imported.what, ended.status) == ("cv2", "problem")
    assert said in ended.what


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((6, 8, 3), np.uint8))


def test_data_is_recognised_and_counted(tmp_path):
    for name in ("cat", "dog"):
        for index in range(2):
            picture(tmp_path / "flat" / name / f"{index}.jpg")
            picture(tmp_path / "split" / "train" / name / f"{index}.jpg")
        picture(tmp_path / "split" / "val" / name / "2.jpg")
    coco = tmp_path / "coco"
    picture(coco / "val2017" / "7.jpg")
    (coco / "annotations").mkdir()
    image = {"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}
    everything = {"images": [image], "annotations": [{"id": 1, "image_id": 7}]}
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(everything))
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "ILSVRC2012_img_train.tar").touch()
    (tmp_path / "empty").mkdir()
    for name, status, said in (
        (
            "flat",
            "ok",
            "2 training and 2 validation images: --config.model.classes=2 --config.data",
        ),
        ("split", "ok", "4 training and 2 validation images: --config.model.classes=2"),
        ("flat/cat", "ok", "images, as"),
        ("coco", "ok", "COCO, 1 images in val2017"),
        ("VOCdevkit", "problem", "looks like PASCAL VOC"),
        ("tars", "ok", "crate_jax.data.prepare"),
        ("empty", "problem", "no layout that is known"),
        ("absent", "problem", "no such folder"),
    ):
        (found,) = doctor.folder(str(tmp_path / name))
        assert (found.status, said in found.what) == (status, True), found


def test_a_report_and_its_status(monkeypatch, capsys):
    found = [Result("a", "ok", "fine"), Result("b", "problem", "bad", "mend it")]
    monkeypatch.setattr(doctor, "results", lambda *_: iter(found))
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM" in shown
    assert "-> mend it" in shown
    assert shown.strip().endswith("1 problem, 0 note, 1 ok")
    assert doctor.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["results"][1]["remedy"] == "mend it"
    found.pop()
    assert doctor.main([]) == 0


@pytest.mark.slow
def test_a_real_run(tmp_path):
    """From an empty folder, with a secret in the environment that must not be printed."""
    secret = "hf_0123456789abcdef"
    done = subprocess.run(
        [sys.executable, "-m", "crate_jax.doctor", "--json", "--timeout=400"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": secret, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    topics = {f["topic"]: f for f in report["results"]}
    problems = [f for f in report["results"] if f["status"] == "problem"]
    assert done.returncode == int(bool(problems)), done.stderr
    assert topics["training step"]["status"] == "ok", topics["training step"]
    assert {"crate_jax", "packages", "extras", "disk", "devices"} <= set(topics)
    assert not any("check failed" in f["what"] for f in report["results"])
    assert secret not in done.stdout + done.stderr
