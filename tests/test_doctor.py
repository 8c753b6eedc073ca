"""The doctor: each check against a faked environment, and one real run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from crate_jax.doctor import __main__ as doctor
from crate_jax.doctor import accelerators, data, environment, findings, machine, packages

ROOT = pathlib.Path(__file__).parents[1]


def only(found):
    (one,) = found
    return one


@pytest.fixture
def versions(monkeypatch):
    """Installed versions by name; what is not named is not installed."""
    chosen = {}
    monkeypatch.setattr(packages, "installed", chosen.get)
    return chosen


@pytest.fixture
def asked(monkeypatch):
    """What packages ask for, by name; ours under "crate-jax"."""
    chosen = {}

    def declaration():
        return {
            "requires": [Requirement(r) for r in chosen.get("crate-jax", [])],
            "extras": ["torch", "cuda"],
            "python": ">=3.11",
            "installed": True,
        }

    monkeypatch.setattr(packages, "declaration", declaration)
    monkeypatch.setattr(
        packages, "_requires", lambda name: [Requirement(r) for r in chosen.get(name, [])]
    )
    return chosen


def test_a_failing_check_stops_no_other():
    def broken():
        raise RuntimeError("no such luck")

    found = list(findings.examine([broken, lambda: findings.ok("a", "b"), lambda: None]))
    assert [f.status for f in found] == ["note", "ok"]
    assert "RuntimeError: no such luck" in found[0].what


def test_python_too_old():
    assert machine.python(">=3.11").status == "ok"
    assert machine.python(">=4").status == "problem"


def test_small_shared_memory_and_disks(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 64 * 2**20})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    small = machine.shared_memory(str(tmp_path))
    assert (small.status, "--shm-size" in small.remedy) == ("note", True)
    assert machine.disk(str(tmp_path / "not" / "there")).status == "note"
    file = tmp_path / "file"
    file.touch()
    assert machine.disk(str(file / "run")).status == "problem"


def test_home_is_not_spelt_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert machine.home("/home/somebody/x") == "~/x"
    assert machine.home("/home/somebodyelse/x") == "/home/somebodyelse/x"


def test_dependencies(versions, asked):
    asked["crate-jax"] = ["numpy>=2.0", "jax>=0.10.0", 'torch>=2.6; extra == "torch"']
    versions |= {"numpy": "2.1.0", "jax": "0.10.2"}
    assert only(packages.dependencies()).what.startswith("all 2 dependencies")
    versions |= {"numpy": "1.26.4"}
    versions.pop("jax")
    wrong, numpy = packages.dependencies()
    assert wrong.what == "numpy 1.26.4, expected >=2.0; jax is not installed"
    assert wrong.remedy == 'pip install --upgrade "numpy>=2.0" "jax>=0.10.0"'
    assert (numpy.topic, numpy.status) == ("NumPy", "problem")


def test_extras_follow_nested_ones(versions, asked):
    asked["crate-jax"] = ['torch>=2.6; extra == "torch"', 'jax[cuda13]>=0.10; extra == "cuda"']
    asked["jax"] = ["jaxlib", 'jax-cuda13-plugin>=0.10; extra == "cuda13"']
    versions |= {"jax": "0.10.2", "torch": "2.6.0"}
    here, missing = packages.extras("cuda")
    assert here.what == "here: torch"
    assert (missing.status, missing.what) == ("note", "not here: cuda")
    assert missing.remedy.startswith("pip install ")
    assert "[cuda]" in missing.remedy
    versions["jax-cuda13-plugin"] = "0.10.2"
    assert only(packages.extras("cuda")).what == "here: torch, cuda"


def test_jax_and_its_parts(versions, asked):
    asked["jax"] = [
        "jaxlib<=0.10.2,>=0.10.2",
        'jaxlib==0.10.1; extra == "minimum-jaxlib"',
        'jax-cuda12-plugin<=0.10.2,>=0.10.2; extra == "cuda12"',
        'jax-cuda13-plugin<=0.10.2,>=0.10.2; extra == "cuda13"',
    ]
    versions |= {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda13-plugin": "0.10.2"}
    assert only(packages.jax_versions()).status == "ok"
    versions["jaxlib"] = "0.10.0"
    assert "jaxlib 0.10.0, expected" in only(packages.jax_versions()).what
    versions |= {"jaxlib": "0.10.2", "jax-cuda13-plugin": "0.9.0"}
    found = only(packages.jax_versions())
    assert (found.status, found.remedy.split(";")[0]) == (
        "problem",
        'pip install --upgrade "jax[cuda13]==0.10.2"',
    )
    versions |= {"jax-cuda13-plugin": "0.10.2", "jax-cuda12-plugin": "0.10.2"}
    agree, both = packages.jax_versions()
    assert (agree.status, both.status) == ("ok", "problem")
    assert "CUDA 12 and CUDA 13" in both.what


def test_clashes(versions, asked):
    asked["tensorboardX"] = ["protobuf>=4.25"]
    versions |= {"protobuf": "3.20.3", "tensorboardX": "2.6.2"}
    found = only(packages.clashes())
    assert (found.topic, found.status) == ("protobuf", "problem")
    assert "tensorboardX asks for protobuf>=4.25" in found.what
    versions |= {"protobuf": "5.0", "opencv-python": "4.10", "opencv-python-headless": "4.10"}
    _, opencv = packages.clashes()
    assert (opencv.topic, opencv.status) == ("OpenCV", "note")
    versions.pop("opencv-python")
    versions["tensorflow"] = "2.18.0"
    assert [f.status for f in packages.clashes(has_gpu=False)] == ["ok", "ok"]
    assert [f.status for f in packages.clashes(has_gpu=True)] == ["ok", "note"]


@pytest.mark.parametrize(
    ("gpu", "tpu", "variables", "status"),
    [
        (False, False, {}, None),
        (False, False, {"JAX_PLATFORMS": "cpu"}, "note"),
        (True, False, {"JAX_PLATFORMS": "cpu"}, "problem"),
        (False, True, {"JAX_PLATFORMS": "cpu"}, "problem"),
        (False, False, {"JAX_PLATFORMS": "cuda,cpu"}, "problem"),
        (True, False, {"JAX_PLATFORMS": "cuda"}, "note"),
        (False, False, {"JAX_PLATFORMS": "tpu"}, "problem"),
        (True, False, {"CUDA_VISIBLE_DEVICES": ""}, "problem"),
        (True, False, {"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_variables_that_hide_devices(gpu, tpu, variables, status):
    found = environment.platforms(gpu, tpu, variables)
    assert (found.status if found else None) == status


def test_variables_of_memory():
    def said(**variables):
        return [f.status for f in environment.gpu_memory(variables)]

    assert said() == []
    assert said(XLA_PYTHON_CLIENT_PREALLOCATE="false") == ["note"]
    assert said(XLA_PYTHON_CLIENT_MEM_FRACTION=".9") == ["note"]
    assert said(XLA_PYTHON_CLIENT_MEM_FRACTION="90") == ["problem"]
    assert said(XLA_PYTHON_CLIENT_MEM_FRACTION="most") == ["problem"]


def test_cuda_libraries_on_the_path(tmp_path):
    variables = {"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"}
    assert environment.library_path(True, variables) is None
    (tmp_path / "libcudnn.so.8").touch()
    assert "libcudnn.so.8" in environment.library_path(True, variables).what
    assert environment.library_path(False, variables) is None


def test_files_that_hide_packages(tmp_path):
    assert list(environment.shadows(tmp_path)) == []
    assert list(environment.shadows(ROOT)) == []
    (tmp_path / "jax.py").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "scenes_tiny.py").write_text("mine")
    (tmp_path / "configs" / "another.py").touch()
    hidden, configs = environment.shadows(tmp_path)
    assert (hidden.status, "jax.py hides the package jax" in hidden.what) == ("problem", True)
    assert (configs.status, "configs/scenes_tiny.py" in configs.what) == ("note", True)


def trial(status=0, errors="", **stages):
    return accelerators.Trial(stages, status, 60, errors)


CPU = {"platform": "cpu", "kinds": ["cpu"], "bytes": [None], "count": 1, "seconds": 0.1}
MATMUL = {"side": 8, "gflops": {"float32": 20000.0, "bfloat16": 3.0}}
STEP = {
    **{"first": 2.5, "last": 1.5, "steps": 20, "finite": True, "compilation": 1.0},
    **{"milliseconds": 2.0, "images": 8, "devices": 1},
}
GOOD = {"imports": {"broken": {}}, "devices": CPU, "matmul": MATMUL, "step": STEP}


def test_a_trial_that_went_well(versions):
    found = list(accelerators.judge(trial(**GOOD), [], False))
    assert [f.status for f in found] == ["ok"] * 3
    assert "20.0 TFLOP/s in float32, 3.0 GFLOP/s" in found[1].what


def test_jax_without_its_plugin_beside_a_gpu(versions, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = next(accelerators.judge(trial(**GOOD), ["NVIDIA L4"], False))
    assert found.status == "problem"
    assert "NVIDIA L4" in found.what
    assert "[cuda]" in found.remedy
    versions["jax-cuda13-plugin"] = "0.10.2"
    assert "driver" in next(accelerators.judge(trial(**GOOD), ["NVIDIA L4"], False)).remedy
    assert "[tpu]" in next(accelerators.judge(trial(**GOOD), [], True)).remedy
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert (
        next(accelerators.judge(trial(**GOOD), ["NVIDIA L4"], False)).remedy
        == "unset JAX_PLATFORMS"
    )


def test_gpus_that_jax_does_not_see_all(versions):
    gpu = {**CPU, "platform": "gpu", "kinds": ["NVIDIA L4"], "bytes": [24 * 2**30]}
    stages = {**GOOD, "devices": gpu}
    found = next(accelerators.judge(trial(**stages), ["NVIDIA L4"] * 2, False))
    assert (found.status, "1 x NVIDIA L4 (24 GiB each)" in found.what) == ("note", True)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (trial(None, imports={"broken": {}}), "JAX's backend did not end within 60 s"),
        (trial(-11, "boom"), "importing packages ended the process with status -11: boom"),
        (trial(1, imports={"broken": {}}, devices={"error": "no"}), "JAX has none: no"),
        (trial(imports={"broken": {"cv2": "ImportError: libGL.so.1"}}, **{}), "cv2: ImportError"),
        (trial(**GOOD | {"step": {**STEP, "finite": False}}), "must be finite and fall"),
        (trial(**GOOD | {"step": {**STEP, "last": 2.6}}), "must be finite and fall"),
        (trial(**GOOD | {"matmul": {"error": "XlaRuntimeError: bad"}}), "XlaRuntimeError: bad"),
    ],
)
def test_trials_that_did_not(ended, said, versions):
    problems = [f for f in accelerators.judge(ended, [], False) if f.status == "problem"]
    assert said in problems[0].what
    assert problems[0].remedy


def test_the_time_limit_ends_a_hanging_backend(monkeypatch, tmp_path):
    """A stand-in for the trial tells one stage and then waits, as for a TPU that another holds."""
    hanging = tmp_path / "python"
    hanging.write_text('#!/bin/sh\necho \'{"stage": "imports", "broken": {}}\'\nexec sleep 60\n')
    hanging.chmod(0o755)
    monkeypatch.setattr(accelerators.sys, "executable", str(hanging))
    start = time.monotonic()
    ended = accelerators.attempt(1.0)
    assert time.monotonic() - start < 20
    assert (ended.status, ended.stages) == (None, {"imports": {"broken": {}}})


def test_who_holds_the_device(tmp_path):
    device = tmp_path / "accel0"
    device.touch()
    holder = subprocess.Popen(["sleep", "60"], stdin=device.open())
    try:
        assert machine.holders((str(tmp_path),)) == {holder.pid: "sleep"}
    finally:
        holder.send_signal(signal.SIGTERM)
        holder.wait()


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((6, 8, 3), np.uint8))


def test_data_is_recognised_and_counted(tmp_path):
    for name in ("cat", "dog"):
        for index in range(2):
            picture(tmp_path / "flat" / name / f"{index}.jpg")
            picture(tmp_path / "split" / "train" / name / f"{index}.jpg")
        picture(tmp_path / "split" / "val" / name / "2.jpg")
    flat = data.folder(str(tmp_path / "flat"))
    assert (flat.status, "2 classes, 2 training and 2 validation" in flat.what) == ("ok", True)
    assert "--config.data.val_fraction=0.1" in flat.remedy
    split = data.folder(str(tmp_path / "split"))
    assert "2 classes, 4 training and 2 validation images; the first is 6 x 8 x 3" in split.what
    assert split.remedy.endswith("--config.model.classes=2")

    assert "2 images without class folders" in data.folder(str(tmp_path / "flat" / "cat")).what

    coco = tmp_path / "coco"
    picture(coco / "val2017" / "7.jpg")
    (coco / "annotations").mkdir()
    image = {"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}
    everything = {"images": [image], "annotations": [{"id": 1, "image_id": 7}]}
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(everything))
    assert "COCO, 1 images and 1 objects in val2017" in data.folder(str(coco)).what

    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages").mkdir(parents=True)
    broken = data.folder(str(tmp_path / "VOCdevkit"))
    assert (broken.status, "looks like PASCAL VOC" in broken.what) == ("problem", True)

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "ILSVRC2012_img_train.tar").touch()
    assert "data.prepare imagenet" in data.folder(str(tmp_path / "tars")).remedy
    (tmp_path / "empty").mkdir()
    assert "holds nothing" in data.folder(str(tmp_path / "empty")).what
    assert data.folder(str(tmp_path / "absent")).status == "problem"


def test_a_report_and_its_status(monkeypatch, capsys):
    found = [findings.ok("a", "fine"), findings.problem("b", "bad", "mend it")]
    monkeypatch.setattr(doctor, "findings", lambda *_: iter(found))
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM" in shown
    assert "-> mend it" in shown
    assert shown.strip().endswith("1 problem, no notes, 1 ok")
    assert doctor.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][1]["remedy"] == "mend it"
    found.pop()
    assert doctor.main([]) == 0


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
    topics = {f["topic"]: f for f in report["findings"]}
    problems = [f for f in report["findings"] if f["status"] == "problem"]
    assert done.returncode == int(bool(problems)), done.stderr
    assert topics["training step"]["status"] == "ok", topics["training step"]
    assert "GFLOP/s in float32" in topics["matrix product"]["what"]
    assert {"Python", "processor", "disk", "packages", "JAX", "extras", "data"} <= set(topics)
    assert not any("check itself failed" in f["what"] for f in report["findings"])
    assert secret not in done.stdout + done.stderr
