"""Starting, watching and stopping training runs in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
TINY = "tests/end_to_end/tiny_config.py"


def command(workdir, config=TINY, *extra):
    return [
        sys.executable,
        "-m",
        "crate_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        *extra,
    ]


def environment(devices=1, **variables):
    """That of tests/conftest.py, with forced host devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    forced = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"}
    return os.environ | forced | variables


def run(workdir, *extra, config=TINY, devices=1, check=True, **variables):
    """Runs to the end; returns the completed process with its text."""
    done = subprocess.run(
        command(workdir, config, *extra),
        cwd=ROOT,
        env=environment(devices, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def interrupt(workdir, signal_number, at_step, *extra, config=TINY, **variables):
    """Runs until metrics.jsonl holds a line of `at_step` or later, then sends a signal."""
    process = subprocess.Popen(
        command(workdir, config, *extra),
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= at_step for line in metrics(workdir, whole=False)):
            process.send_signal(signal_number)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def metrics(workdir, whole=True):
    """The lines of metrics.jsonl without the times; `whole=False` passes over a torn last line."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            assert not whole, f"torn line {line!r}"
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def checkpoint_steps(workdir):
    directory = pathlib.Path(workdir) / "checkpoints"
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def losses(workdir):
    """The training loss by step."""
    return {line["step"]: line["train/loss"] for line in metrics(workdir) if "train/loss" in line}


def losses_of(loop, config, workdir):
    """Trains in this process; the training loss by step."""
    assert loop.train(config, workdir) == 0
    return losses(workdir)
