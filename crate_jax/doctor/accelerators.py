"""JAX on this machine: which devices it sees, whether it should see more, and whether they work."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from crate_jax.doctor import machine, packages
from crate_jax.doctor.findings import Finding, note, ok, problem
from crate_jax.doctor.machine import GiB

LOCK = "/tmp/libtpu_lockfile"
_STAGES = {
    "imports": "importing packages",
    "devices": "starting JAX's backend",
    "matmul": "a matrix product",
    "step": "a training step",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the trial process told before it ended, by stage, and how it ended."""

    stages: dict[str, dict]
    status: int | None  # None: it was stopped at the time limit
    seconds: float
    errors: str = ""  # the last lines of its standard error


def attempt(seconds: float) -> Trial:
    """Runs `crate_jax.doctor.trial` for at most so long."""
    # Other programs may be at work on the device: take what is needed, not 75 % of its memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "crate_jax.doctor.trial"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        out, errors = process.communicate(timeout=seconds)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        status = None
    stages = {}
    for line in out.splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            stages[told.pop("stage")] = told
    return Trial(stages, status, seconds, "\n".join(errors.strip().splitlines()[-3:]))


def judge(trial: Trial, gpus: list[str], tpu: bool) -> Iterator[Finding]:
    """What a trial says of this machine."""
    yield from _imports(trial.stages.get("imports", {}))
    started = trial.stages.get("devices")
    if started and "error" not in started:
        yield _devices(started, gpus, tpu)
        yield from _work(trial.stages)
    missing = next((name for name in _STAGES if name not in trial.stages), None)
    if started and "error" in started:
        yield problem("devices", f"JAX has none: {_short(started['error'])}", _mend(gpus, tpu))
    elif missing and trial.status is None:
        yield problem(
            "devices",
            f"{_STAGES[missing]} did not end within {trial.seconds:g} s",
            _hanging(tpu) if missing == "devices" else "try again with a larger --timeout",
        )
    elif missing:
        yield problem(
            "devices",
            f"{_STAGES[missing]} ended the process with status {trial.status}"
            + (f": {_short(trial.errors)}" if trial.errors else ""),
            _mend(gpus, tpu) if gpus or tpu else "pip install --force-reinstall jax jaxlib",
        )


def _short(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _imports(told: dict) -> Iterator[Finding]:
    for name, error in told.get("broken", {}).items():
        remedy = "pip install --upgrade --force-reinstall " + {
            "cv2": "opencv-python-headless",
            "pycocotools.mask": "pycocotools",
            "tensorboardX": "tensorboardX protobuf",
            "tensorflow_datasets": "tensorflow-datasets protobuf",
        }.get(name, name)
        if "libGL" in error:
            remedy = "pip uninstall -y opencv-python && " + remedy
        yield problem("import", f"{name}: {_short(error)}", remedy)


def _devices(told: dict, gpus: list[str], tpu: bool) -> Finding:
    kinds, sizes = told["kinds"], told["bytes"]
    names = [
        f"{kinds.count(kind)} x {kind}" + (f" ({sizes[kinds.index(kind)] / GiB:.0f} GiB each)")
        if sizes[kinds.index(kind)]
        else f"{kinds.count(kind)} x {kind}"
        for kind in dict.fromkeys(kinds)
    ]
    what = f"{told['platform']}: {', '.join(names)}; ready in {told['seconds']:.1f} s"
    if told["platform"] == "cpu" and (gpus or tpu):
        hardware = ", ".join(dict.fromkeys(gpus)) if gpus else "a TPU"
        return problem("devices", f"{what}, though this machine has {hardware}", _mend(gpus, tpu))
    if told["platform"] in ("gpu", "cuda") and len(gpus) > len(kinds):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""
        return note("devices", f"{what}, of {len(gpus)} GPUs in this machine{why}")
    return ok("devices", what)


def _mend(gpus: list[str], tpu: bool) -> str:
    """What to do where JAX does not see an accelerator that is there."""
    if os.environ.get("JAX_PLATFORMS"):
        return "unset JAX_PLATFORMS"
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "unset CUDA_VISIBLE_DEVICES"
    if gpus and not any(packages.installed(f"jax-cuda{c}-plugin") for c in (12, 13)):
        return packages.install_command("cuda") + " (JAX is here without its CUDA plugin)"
    if gpus:
        return (
            "see the driver's version with nvidia-smi: CUDA 13 needs 580 or newer, CUDA 12 needs "
            '525 or newer (then pip uninstall the cuda13 plugins and pip install "jax[cuda12]"); '
            "in a container, start it with --gpus all"
        )
    if tpu and not packages.installed("libtpu"):
        return packages.install_command("tpu") + " (JAX is here without libtpu)"
    if tpu:
        return _hanging(tpu)
    return "unset JAX_PLATFORMS; pip install --upgrade jax"


def _hanging(tpu: bool) -> str:
    if tpu and (held := machine.holders()):
        listed = ", ".join(f"{process} ({name})" for process, name in held.items())
        return f"the TPU is held by process {listed}: let it end, or stop it"
    if tpu:
        return (
            f"another process may hold the TPU: sudo lsof -w /dev/accel* /dev/vfio/*; end it, and "
            f"rm -f {LOCK}. On a pod slice start every worker: launch/tpu_vm.sh"
        )
    return "try again with a larger --timeout; if it hangs again, see nvidia-smi, or restart"


def _work(stages: dict[str, dict]) -> Iterator[Finding]:
    reinstall = "report it with the output of --json; pip install --force-reinstall jax jaxlib"
    if told := stages.get("matmul"):
        if "error" in told:
            yield problem("matrix product", _short(told["error"]), reinstall)
        else:
            rates = ", ".join(f"{_rate(rate)} in {dtype}" for dtype, rate in told["gflops"].items())
            yield ok("matrix product", f"{rates} ({told['side']} x {told['side']}, one device)")
    if told := stages.get("step"):
        if "error" in told:
            yield problem("training step", _short(told["error"]), reinstall)
            return
        what = (
            f"{told['milliseconds']:.1f} ms for {told['images']} images on {told['devices']} "
            f"device{'s' * (told['devices'] > 1)}, compiled in {told['compilation']:.1f} s; loss "
            f"{told['first']:.3f}, after {told['steps']} steps {told['last']:.3f}"
        )
        if told["finite"] and told["last"] < told["first"]:
            yield ok("training step", what)
        else:
            yield problem("training step", f"{what}: it must be finite and fall", reinstall)


def _rate(gflops: float) -> str:
    return f"{gflops / 1e3:,.1f} TFLOP/s" if gflops >= 1e4 else f"{gflops:,.1f} GFLOP/s"


def tpu_lock(tpu: bool) -> Finding | None:
    """Processes that hold a TPU, and the lock file that one may have left behind."""
    if not tpu:
        return None
    if held := machine.holders():
        listed = ", ".join(f"{process} ({name})" for process, name in held.items())
        return problem(
            "TPU",
            f"held by process {listed}: a second one waits or fails",
            "let it end, or stop it; a notebook holds the TPU until its kernel is restarted",
        )
    if os.path.exists(LOCK):
        return note("TPU", f"{LOCK} is there, but no process we see holds the TPU", f"rm -f {LOCK}")
    return ok("TPU", "no other process holds it")


def gpu_neighbours() -> Finding | None:
    """Other programs' memory on the GPUs, which JAX's 75 % may not leave."""
    for index, total, used in machine.nvidia_smi("index", "memory.total", "memory.used"):
        if total.isdigit() and used.isdigit() and int(used) > 0.2 * int(total):
            users = machine.nvidia_smi("pid", "process_name", what="compute-apps")
            names = ", ".join(f"{row[0]} ({os.path.basename(row[1])})" for row in users[:5])
            return note(
                "GPU memory",
                f"GPU {index}: {int(used) / 1024:.0f} of {int(total) / 1024:.0f} GiB are in use"
                + (f" by {names}" if names else ""),
                "end those, choose a free GPU by CUDA_VISIBLE_DEVICES, or set "
                "XLA_PYTHON_CLIENT_MEM_FRACTION below what is free",
            )
    return None
