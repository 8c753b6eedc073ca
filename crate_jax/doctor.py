# PYTHON_ARGCOMPLETE_OK
"""Look at this machine and this installation, and say what to mend.

    python -m crate_jax.doctor                          # half a minute
    python -m crate_jax.doctor --data=IMAGES --data=VOCdevkit --workdir=/big/disk
    python -m crate_jax.doctor --json > report.json     # for a bug report

Whether JAX sees the accelerators that are there, and, in a process of its own, training steps of a
tiny CRATE on all devices; room on the disk, data, extras, and what users have met in installations.
The rest is said by `pip check` (run here) and by `python -c "import jax;
jax.print_environment_info()"`. No variable of the environment is printed but those named here.

Exit status: 0 no problem (there may be notes); 1 a problem; 2 wrong usage.
"""

import argparse
import collections
import dataclasses
import functools
import glob
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Literal

from crate_jax import command_line
from crate_jax._version import __version__

OURS = "crate-jax"
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}
# Compiled packages and those that use protobuf: these break on import when versions do not fit.
_FRAGILE = ("numpy", "cv2", "simplejpeg", "pycocotools.mask", "tensorboardX", "tensorflow_datasets")
_EXTRAS = {
    **{"torch": "torch", "wandb": "wandb", "cuda": "jax-cuda13-plugin", "tpu": "libtpu"},
    **{"notebook": "ipykernel", "docs": "sphinx", "test": "pytest", "dev": "pytest-cov"},
}
_TRIAL = "from crate_jax import doctor; doctor.trial()"


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the report: ok; note, worth knowing; problem, something will not work."""

    topic: str
    status: Literal["ok", "note", "problem"]
    what: str
    remedy: str = ""


Results = Iterator[Result]
Check = Callable[[], Iterable[Result]]


def examine(checks: Iterable[Check]) -> Results:
    """What the checks find, in their order; one that fails is reported and stops none."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "check").replace("_", " ")
            yield Result(name, "note", f"this check failed: {type(error).__name__}: {error}")


def results(data: list[str], workdir: str, timeout: float, quick: bool) -> Results:
    """All results, as they are made; `timeout` seconds for the devices, `quick` leaves them."""
    hardware = find_hardware()
    bound = functools.partial
    checks: list[Check] = [
        *(installation, pip_check, extras, clashes, shadows, bound(room, workdir)),
        *(bound(platforms, hardware), *(() if quick else (bound(attempt, timeout, hardware),))),
        *(bound(folder, place) for place in data),
    ]
    yield from examine(checks)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The accelerators that are there, as the operating system and not JAX knows them."""

    gpus: int = 0  # NVIDIA's
    tpu: bool = False

    def __str__(self):
        return f"{self.gpus} NVIDIA GPU{'s' * (self.gpus > 1)}" if self.gpus else "a TPU"


def find_hardware() -> Hardware:
    """What the driver's files in /proc and /dev and the PCI bus say."""
    gpus = glob.glob("/proc/driver/nvidia/gpus/*") or glob.glob("/dev/nvidia[0-9]*")
    vendors = [pathlib.Path(f).read_text() for f in glob.glob("/sys/bus/pci/devices/*/vendor")]
    google = glob.glob("/dev/vfio/[0-9]*") and "0x1ae0\n" in vendors
    tpu = google or glob.glob("/dev/accel[0-9]*") or "TPU_ACCELERATOR_TYPE" in os.environ
    return Hardware(len(gpus), bool(tpu))


def platforms(hardware: Hardware, environment: Mapping[str, str] = os.environ) -> Results:
    """Variables that keep JAX from the accelerator, or hand it other CUDA libraries."""
    value = environment.get("JAX_PLATFORMS", "")
    wanted = set(value.lower().split(",")) - {""}
    there = {"cuda", "gpu"} if hardware.gpus else {"tpu"} if hardware.tpu else set()
    if wanted == {"cpu"} and there:
        what = f"{value}: keeps JAX from this machine's {hardware}"
        yield Result("JAX_PLATFORMS", "problem", what, "unset JAX_PLATFORMS")
    elif missing := wanted & {"cuda", "gpu", "tpu"} - there:
        what = f"{value}, but no {'TPU' if missing == {'tpu'} else 'GPU'} is found here"
        yield Result("JAX_PLATFORMS", "problem", what, "unset JAX_PLATFORMS")
    elif wanted:
        yield Result("JAX_PLATFORMS", "note", f"{value}: JAX uses nothing else")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if hardware.gpus and visible in ("", "-1", "NoDevFiles"):
        name = "CUDA_VISIBLE_DEVICES"
        yield Result(name, "problem", f"{visible!r} hides every GPU", f"unset {name}")
    if hardware.gpus and "cuda" in (libraries := environment.get("LD_LIBRARY_PATH", "")):
        name, what = "LD_LIBRARY_PATH", f"{libraries} goes before what JAX's wheels bring along"
        yield Result(name, "note", what, f"unset {name}")


def attempt(seconds: float, hardware: Hardware) -> Results:
    """What `trial` finds in another process within so long, and how that ended.

    A backend whose device is held by another process can wait for ever, and a broken driver can end
    the process; so it says before each stage what it is about to do.
    """
    # Other programs may be at work on the device: take what is needed, not 75 % of its memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    command = [sys.executable, "-c", _TRIAL]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True)
    try:
        out, errors = process.communicate(timeout=seconds)
        ended = f"ended the process with status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        ended = f"did not end within {seconds:g} s"
    stage = "starting Python"
    for line in (json.loads(line) for line in out.splitlines() if line.startswith("{")):
        if "topic" in line:
            yield Result(**line)
        else:
            stage = line["stage"]
    if stage != "the end":
        what = f"{stage} {ended}. {' '.join(errors.split()[-50:])}"
        yield Result("devices", "problem", what, mend(hardware))


def trial() -> None:
    """Imports, devices, training steps: lines of JSON, for `attempt`."""
    hardware = find_hardware()
    stages = {
        "importing packages": imports,
        "starting JAX's backend": functools.partial(devices, hardware),
        "a training step": training_step,
    }
    for name, stage in stages.items():
        print(json.dumps({"stage": name}), flush=True)
        for result in stage():
            print(json.dumps(vars(result)), flush=True)
    print(json.dumps({"stage": "the end"}))


def imports() -> Results:
    """Imports what tends to break, and tells what did."""
    for name in _FRAGILE:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises
            module = {"cv2": "opencv-python-headless"}.get(name, name).partition(".")[0]
            remedy = f"pip install --upgrade --force-reinstall {module.replace('_', '-')}"
            what = f"{name}: {type(error).__name__}: {error}"[:300]
            yield Result("import", "problem", " ".join(what.split()), remedy)


def devices(hardware: Hardware) -> Results:
    """Initialises the backend; what JAX has, against what is there."""
    import jax

    start = time.perf_counter()
    found = jax.local_devices()
    kinds, platform = [device.device_kind for device in found], found[0].platform
    listed = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    what = f"{platform}: {listed}; ready in {time.perf_counter() - start:.1f} s"
    if platform == "cpu" and (hardware.gpus or hardware.tpu):
        what += f", though this machine has {hardware}"
        yield Result("devices", "problem", what, mend(hardware))
    elif platform != "cpu" and hardware.gpus > len(kinds):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        what += f", of {hardware} (CUDA_VISIBLE_DEVICES: {visible})"
        yield Result("devices", "note", what)
    else:
        yield Result("devices", "ok", what)


def training_step(steps: int = 10) -> Results:
    """Steps of the smallest CRATE on one batch of scenes, over all devices, as in step.

    The same batch every time, so that the loss must fall; the first step compiles.
    """
    import jax
    import numpy as np

    import crate_jax.config
    from crate_jax import data
    from crate_jax.models import base, variants
    from crate_jax.training import optim, sharding, step

    config = crate_jax.config.default()
    config.model = crate_jax.config.model("crate-testing")
    config.data.image_size = max(config.model.image_size)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    source = data.source(config.data, "train")
    examples = [source[index] for index in range(8 * mesh.size)]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
    batch = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    definition, params = base.split(variants.build(variants.from_dict(config.model.to_dict())))
    optimizer = optim.optimizer(config.optimizer, lambda _: config.optimizer.learning_rate)
    state = jax.device_put((params, step.initial(optimizer, params)), sharding.replicated(mesh))
    objective = step.objective(config)
    run = jax.jit(step.make_step(definition, objective, optimizer, seed=0))
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        params, progress = jax.block_until_ready(run(*state, batch))
        seconds.append(time.perf_counter() - start)
        losses.append(step.read_sums(progress)["train/loss"])
        state = (params, step.reset_sums(progress))
    yield judge(
        losses,
        seconds,
        f"{len(examples)} images over {mesh.size} x {mesh.devices.flat[0].platform}",
    )


def judge(losses: list[float], seconds: list[float], batch: str) -> Result:
    """The loss of steps on one batch has to fall."""
    what = f"{1e3 * min(seconds):.1f} ms for {batch}, compiled in {seconds[0]:.1f} s; loss "
    what += f"{losses[0]:.3f}, after {len(losses)} steps {losses[-1]:.3f}"
    if losses[-1] < losses[0]:  # not so for NaN
        return Result("training step", "ok", what)
    remedy = "report it with the output of --json; pip install --force-reinstall jax jaxlib"
    return Result("training step", "problem", f"{what}: it must fall", remedy)


def mend(hardware: Hardware) -> str:
    """What to do where JAX does not see an accelerator that is there, or does not start."""
    if os.environ.get("JAX_PLATFORMS"):
        return "unset JAX_PLATFORMS"
    if hardware.gpus and not (installed("jax-cuda12-plugin") or installed("jax-cuda13-plugin")):
        return f"{install('cuda')} (JAX is here without its CUDA plugin)"
    if hardware.gpus:
        return (
            "see the driver's version with nvidia-smi: CUDA 13 needs 580 or newer, CUDA 12 needs "
            '525 or newer (pip install "jax[cuda12]"); in a container, start it with --gpus all'
        )
    if hardware.tpu and not installed("libtpu"):
        return f"{install('tpu')} (JAX is here without libtpu)"
    if hardware.tpu:
        return (
            "another process (a notebook) may hold the TPU: sudo lsof -w /dev/accel* /dev/vfio/*; "
            "end it, and rm -f /tmp/libtpu_lockfile. On a pod start all hosts: launch/tpu_vm.sh"
        )
    return "try again with a larger --timeout; pip install --force-reinstall jax jaxlib"


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install(extra: str) -> str:
    """How this installation gets an extra."""
    folder = pathlib.Path(__file__).parents[1]
    if (folder / "pyproject.toml").exists():
        return f'pip install -e "{folder}[{extra}]"'
    return f'pip install "{OURS}[{extra}]"'


def installation() -> Results:
    """Our version, and whether metadata and code are the same."""
    if (known := installed(OURS)) is None:
        what = f"{__version__}, on the path but not installed: dependencies are not checked"
        yield Result("crate_jax", "note", what, "pip install -e . in its folder")
    elif known != __version__:
        what = f"code of {__version__}, metadata of {known}: two versions are mixed"
        remedy = f"pip uninstall -y {OURS} until none is left, then install it again"
        yield Result("crate_jax", "problem", what, remedy)
    else:
        yield Result("crate_jax", "ok", f"{__version__}, with Python {sys.version.split()[0]}")


def pip_check() -> Results:
    """Versions that do not fit together, as pip finds them."""
    command = [sys.executable, "-m", "pip", "check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "No module named pip" in done.stderr:
        yield Result("packages", "note", "not checked, there is no pip here", "uv pip check")
    elif not done.returncode:
        shown = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
        versions = ", ".join(f"{name} {installed(name)}" for name in shown)
        yield Result("packages", "ok", f"pip check: no broken requirements; {versions}")
    else:
        for line in done.stdout.splitlines():
            ours = line.startswith((f"{OURS} ", "jax", "flax ", "optax ", "orbax", "grain "))
            remedy = f"{install('torch').replace('[torch]', '')} --upgrade" if ours else ""
            yield Result("packages", "problem" if ours else "note", line, remedy)


def extras() -> Results:
    """Which extras are there, by a package of each, and the command for those that are not."""
    missing = [extra for extra, package in _EXTRAS.items() if not installed(package)]
    here = [extra for extra in _EXTRAS if extra not in missing]
    what = f"here: {', '.join(here) or 'none'}; not here: {', '.join(missing) or 'none'}"
    yield Result("extras", "ok", what, f"where wanted: {install('NAME')}" if missing else "")


def clashes() -> Results:
    """Packages that each are well installed and get into each other's way."""
    if installed("jax-cuda12-plugin") and installed("jax-cuda13-plugin"):
        what = "plugins for CUDA 12 and CUDA 13 are both installed: JAX loads both"
        remedy = (
            "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt (a driver below 580: those of 13)"
        )
        yield Result("CUDA plugins", "problem", what, remedy)
    opencv = [f"opencv-{kind}" for kind in ("python", "contrib-python", "python-headless")]
    if len(both := [name for name in opencv if installed(name)]) > 1:
        what = f"{' and '.join(both)} write to the same folder cv2; removing either breaks it"
        remedy = f"pip uninstall -y {' '.join(both)} && pip install opencv-python-headless"
        yield Result("OpenCV", "note", what, remedy)


def shadows(place: str | os.PathLike = ".") -> Results:
    """Files in the current directory that Python takes before the installed packages."""
    here, ours = pathlib.Path(place).resolve(), pathlib.Path(__file__).parent
    for name in ("crate_jax", "cv2", "flax", "grain", "jax", "numpy", "optax", "PIL", "torch"):
        for path in (here / f"{name}.py", here / name / "__init__.py"):
            if path.is_file() and path.parent != ours:
                what = f"{path} hides the package {name} from python -m"
                yield Result("current directory", "problem", what, "rename it, or start elsewhere")


def room(workdir: str, shared: str = "/dev/shm") -> Results:
    """Whether a run can write where its workdir would be, and for the batches of input workers."""
    path = pathlib.Path(os.path.expanduser(workdir)).absolute()
    path = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(path).free / 2**30
    if not path.is_dir() or not os.access(path, os.W_OK):
        yield Result("disk", "problem", f"{path} cannot be written", "choose another --workdir")
    elif free < 2:
        what = (
            f"{free:.1f} GiB free at {path}; three checkpoints of CRATE-B take 0.8, of CRATE-L 2.8"
        )
        yield Result("disk", "note", what, "a larger disk, or --config.keep_checkpoints=1")
    else:
        yield Result("disk", "ok", f"{free:.1f} GiB free at {path}")
    if os.path.isdir(shared) and (free := shutil.disk_usage(shared).free / 2**30) < 1:
        # Containers often have 64 MiB.
        what = (
            f"{free:.2f} GiB free in {shared}: input workers hand batches over through it "
            "(256 images of 224 px are 0.04 GiB, several a worker) and die when it is full"
        )
        remedy = "docker run --shm-size=8g, or train with --config.data.workers=0"
        yield Result("shared memory", "note", what, remedy)


def folder(place: str) -> Results:
    """The data in one folder, recognised by a file of its layout, counted by its reader."""
    from crate_jax.data import recognise

    path = pathlib.Path(os.path.expanduser(place))
    if (told := recognise.layout_of(path)) is None:
        what = f"{place}: {'no layout that is known' if path.is_dir() else 'no such folder'}"
        remedy = "class folders (train/CLASS/*.jpg, val/CLASS/*.jpg, or CLASS/*.jpg), TFDS, VOC"
        yield Result("data", "problem", what, f"expected {remedy}, or COCO")
        return
    layout, file = told
    try:
        counts = recognise.count(layout, path, file)
        yield Result("data", "ok", f"{place}: {layout}, {counts}")
    except (ValueError, OSError) as error:  # the reader's message names what is missing
        first, _, rest = str(error).partition("\n")
        what = f"{place}: looks like {layout}: {first}"
        yield Result("data", "problem", what, rest or first)


def show(found: Iterable[Result]) -> list[Result]:
    """Prints results as they come, each with its remedy below it; returns them."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console, seen = Console(highlight=False), []
    for result in found:
        seen.append(result)
        mark, style = _MARKS[result.status]
        columns = Column(width=7, justify="right"), Column(width=15), Column(overflow="fold")
        row = Table.grid(*columns, padding=(0, 2))  # one for each result: they come one by one
        remedy = Text(f"\n-> {result.remedy}" if result.remedy else "", "cyan")
        row.add_row(Text(mark, style), Text(result.topic, "bold"), Text(result.what) + remedy)
        console.print(row)
    console.print(f"\n{summary(seen)}")
    return seen


def summary(found: list[Result]) -> str:
    """One line: how many problems, notes, and checks without either."""
    counts = collections.Counter(result.status for result in found)
    return ", ".join(f"{counts[status]} {status}" for status in ("problem", "note", "ok"))


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    parser = command_line.parser("python -m crate_jax.doctor", __doc__)
    add = parser.add_argument
    add("--data", action="append", default=[], metavar="DIR", help="look for data there; repeat it")
    add("--workdir", default=".", metavar="DIR", help="where runs are to write (default: here)")
    add("--json", action="store_true", help="print JSON")
    add("--quick", action="store_true", help="leave the devices alone: no JAX is started")
    add("--timeout", type=float, default=180, help="seconds for the devices (default 180)")
    work = functools.partial(_report, command_line.parse(parser, argv))
    return command_line.run(work, threads=0)


def _report(args: argparse.Namespace) -> int:
    found = results(args.data, args.workdir, args.timeout, args.quick)
    if not args.json:
        seen = show(found)
    else:
        seen = list(found)
        report = {"crate_jax": __version__, "summary": summary(seen)}
        print(json.dumps(report | {"results": [vars(result) for result in seen]}, indent=2))
    return int(any(result.status == "problem" for result in seen))


if __name__ == "__main__":
    sys.exit(main())
