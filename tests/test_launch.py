"""The launch scripts: checked by shellcheck, and what they would run."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def dry(script, *arguments, check=True, **variables):
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    return subprocess.run(
        [ROOT / "launch" / script, *arguments],
        env=clean | {"DRY_RUN": "1"} | variables,
        capture_output=True,
        text=True,
        check=check,
    )


def test_all_scripts_are_here():
    assert [p.name for p in SCRIPTS] == ["gpu.sh", "slurm.sh", "tpu_vm.sh"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(script):
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_strict_documented_and_without_placeholders(script):
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in text
    assert "DRY_RUN" in text.split("set -euo")[0]
    assert not any(word in text for word in ("TODO", "YOUR_", "CHANGEME", "<your"))


def test_gpu_command():
    done = dry("gpu.sh", "--config.seed=3", "--config.data.root=a b", CONFIG="configs/x.py:vit")
    assert shlex.split(done.stdout) == [
        "python",
        "-m",
        "crate_jax.main",
        "--config=configs/x.py:vit",
        "--workdir=runs/x",
        "--config.seed=3",
        "--config.data.root=a b",
    ]
    assert dry("gpu.sh", GPUS="0,1").stdout.startswith("env CUDA_VISIBLE_DEVICES=0")


def test_slurm_job():
    job = dry("slurm.sh", "--config.seed=3", NODES="2", GPUS="4", PARTITION="big").stdout
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=big"):
        assert f"#SBATCH {line}\n" in job
    assert "--account" not in job
    assert "crate_jax.main --distributed=on" in job
    assert "--config.seed=3" in job
    header = job[: job.index("set -euo pipefail")]
    assert all(line.startswith("#") for line in header.splitlines())
    subprocess.run(["bash", "-n"], input=job, text=True, check=True)


def test_tpu_commands():
    local = shlex.split(dry("tpu_vm.sh", WORKDIR="out").stdout)
    assert local[:3] == ["python3", "-m", "crate_jax.main"]
    assert "--workdir=out" in local
    pod = shlex.split(dry("tpu_vm.sh", "--config.seed=3", TPU="pod", ZONE="z").stdout)
    assert pod[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    remote = next(word for word in pod if word.startswith("--command="))
    assert remote.startswith("--command=cd ~/crate_jax && python3 -m crate_jax.main")
    assert "--distributed=on" in remote
    failed = dry("tpu_vm.sh", check=False, TPU="pod")
    assert failed.returncode != 0
    assert "expected ZONE" in failed.stderr


def fake_python(folder, body):
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_gpu_resumes_after_a_crash_and_not_after_an_error(tmp_path):
    count = tmp_path / "count"
    crash = fake_python(tmp_path, f'echo x >> {count}; [ "$(wc -l < {count})" -ge 3 ] || exit 1')
    dry("gpu.sh", DRY_RUN="0", PYTHON=crash, RESTARTS="5")
    assert count.read_text().count("x") == 3
    error = fake_python(tmp_path, f"echo x >> {count}; exit 2")
    assert dry("gpu.sh", check=False, DRY_RUN="0", PYTHON=error, RESTARTS="5").returncode == 2
    assert count.read_text().count("x") == 4


def test_gpu_passes_sigterm_on_and_waits_for_the_save(tmp_path):
    saved = tmp_path / "saved"
    saver = fake_python(
        tmp_path,
        f"trap 'sleep 0.3; touch {saved}; exit 0' TERM; touch {tmp_path}/up\n"
        "while true; do sleep 0.05; done",
    )
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    process = subprocess.Popen(
        [ROOT / "launch" / "gpu.sh"], env=clean | {"PYTHON": saver, "RESTARTS": "3"}
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert saved.exists()
