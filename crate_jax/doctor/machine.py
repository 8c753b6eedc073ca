"""The machine: interpreter, processor, memory, disk, and which accelerators are in it.

What hardware is there is read from the operating system, not from JAX, so that a JAX which does not
see it can be told from a machine which does not have it.
"""

import glob
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping

from crate_jax.doctor.findings import Finding, note, ok, problem

GiB = 2**30
_GOOGLE = "0x1ae0"  # PCI vendor of TPUs
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")


def read(path: str) -> str:
    """The text of a file of the system, "" where there is none."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def python(required: str = ">=3.11") -> Finding:
    """The interpreter, against the package's lower bound."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    where = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    what = f"{version} ({platform.python_implementation()}, {where}) at {home(sys.executable)}"
    if SpecifierSet(required).contains(version, prereleases=True):
        return ok("Python", what)
    return problem(
        "Python", f"{what}; expected {required}", "make an environment with a newer Python"
    )


def home(path: str) -> str:
    """A path with ~ for the home directory: reports are shown to others."""
    folder = os.path.expanduser("~")
    return "~" + path[len(folder) :] if folder != "/" and path.startswith(folder + "/") else path


def system() -> Finding:
    """The operating system."""
    release = dict(
        line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line
    )
    name = release.get("PRETTY_NAME", platform.platform()).strip('"')
    what = f"{name}, {platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() == "Linux":
        return ok("system", what)
    return note("system", what, "only Linux is tested; on Windows use WSL 2")


def processor() -> Finding:
    """Cores that this process may use, and memory, within the limits of a container."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    quota, _, period = read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) / int(period))
    fields = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines() if ":" in line)
    total = int(fields.get("MemTotal", "0 kB").split()[0]) * 1024
    free = int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024
    limit = read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(read("/sys/fs/cgroup/memory.current").strip() or 0))
    what = f"{cores:g} CPU cores, {total / GiB:.1f} GiB of memory, {free / GiB:.1f} of them free"
    if total and free < 2 * GiB:
        return note("processor", what, "end other programs, or take a smaller --config.batch_size")
    return ok("processor", what)


def shared_memory(path: str = "/dev/shm") -> Finding | None:
    """Room for the batches that input workers hand over; containers often have 64 MiB."""
    if not os.path.isdir(path):
        return None
    free = shutil.disk_usage(path).free
    what = f"{free / GiB:.2f} GiB free in {path}"
    if free >= GiB:
        return ok("shared memory", what)
    return note(
        "shared memory",
        f"{what}: input workers hand batches over through it (256 images of 224 px are 0.04 GiB, "
        "several for each worker) and die when it is full",
        "start the container with --shm-size=8g (Kubernetes: an emptyDir of medium Memory), or "
        "train with --config.data.workers=0",
    )


def disk(workdir: str) -> Finding:
    """Whether a run can write where its workdir would be, and how much."""
    path = os.path.abspath(os.path.expanduser(workdir))
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        return problem("disk", f"{home(path)} cannot be written", "choose another --workdir")
    free = shutil.disk_usage(path).free
    what = f"{free / GiB:.1f} GiB free at {home(path)}"
    if free < 2 * GiB:
        return note(
            "disk",
            f"{what}; three checkpoints of CRATE-B with AdamW take 0.8 GiB, of CRATE-L 2.8",
            "choose a --workdir on a larger disk, or keep fewer: --config.keep_checkpoints=1",
        )
    return ok("disk", what)


def nvidia() -> list[str]:
    """Names of the NVIDIA GPUs that the driver knows; may be empty names where only it is there."""
    names = [
        line.split(":", 1)[1].strip()
        for file in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information"))
        for line in read(file).splitlines()
        if line.startswith("Model")
    ]
    if not names and (rows := nvidia_smi("name")):
        names = [row[0] for row in rows]
    if not names:
        names = ["NVIDIA GPU"] * len(glob.glob("/dev/nvidia[0-9]*"))
    return names


def nvidia_smi(*fields: str, what: str = "gpu") -> list[list[str]]:
    """Rows of nvidia-smi's fields; none where it is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    command = [program, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def has_tpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a TPU VM: its devices, its PCI vendor, or what the platform sets."""
    if glob.glob("/dev/accel[0-9]*") or any(name in environment for name in _TPU_VARIABLES):
        return True
    vendors = (read(file).strip() for file in glob.glob("/sys/bus/pci/devices/*/vendor"))
    return bool(glob.glob("/dev/vfio/[0-9]*")) and _GOOGLE in vendors


def holders(pattern: Iterable[str] = ("/dev/accel", "/dev/vfio/")) -> dict[int, str]:
    """Processes, by id with their name, that have a TPU open; of other users only if we may see."""
    found = {}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        process = int(link.split("/")[2])
        if target.startswith(tuple(pattern)) and process != os.getpid():
            found[process] = read(f"/proc/{process}/comm").strip()
    return found
