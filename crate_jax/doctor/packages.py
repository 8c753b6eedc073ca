"""Installed packages: versions against what we and JAX ask for, extras, known clashes.

All is read from the metadata of installed packages; nothing is imported.
"""

import functools
import pathlib
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from crate_jax._version import __version__
from crate_jax.doctor.findings import Finding, note, ok, problem

OURS = "crate-jax"
_OPENCV = (
    *("opencv-python", "opencv-contrib-python"),
    *("opencv-python-headless", "opencv-contrib-python-headless"),
)
_PROTOBUF_USERS = (
    *("tensorflow-datasets", "tensorflow-metadata", "tensorboardX", "tensorboard"),
    *("tensorflow", "tensorflow-cpu", "grain", "wandb", "orbax-checkpoint"),
)


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def declaration() -> dict:
    """What we ask for: `requires`, `extras` and `python`, and whether from an installation.

    A checkout that is only on the path has no metadata; its pyproject.toml says the same.
    """
    project = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    if installed(OURS) is not None:
        about = metadata.metadata(OURS)
        return {
            "requires": [Requirement(text) for text in metadata.requires(OURS) or []],
            "extras": about.get_all("Provides-Extra") or [],
            "python": about["Requires-Python"],
            "installed": True,
        }
    if not project.exists():
        raise ValueError("crate-jax has no metadata: install it with pip")
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    requires = [Requirement(text) for text in table["dependencies"]]
    for extra, texts in table["optional-dependencies"].items():
        for text in texts:
            requirement = Requirement(text)
            requirement.marker = _marker(extra)
            requires.append(requirement)
    return {
        "requires": requires,
        "extras": list(table["optional-dependencies"]),
        "python": table["requires-python"],
        "installed": False,
    }


def _marker(extra: str):
    return Requirement(f'x; extra == "{extra}"').marker


def install_command(extra: str) -> str:
    """How this installation gets an extra."""
    folder = pathlib.Path(__file__).parents[2]
    if (folder / "pyproject.toml").exists():
        return f'pip install -e "{folder}[{extra}]"'
    return f'pip install "{OURS}[{extra}]"'


def ourselves() -> Finding:
    """Our version, and whether metadata and code are the same."""
    if not declaration()["installed"]:
        return note(
            "crate_jax",
            f"{__version__}, on the path but not installed",
            "pip install -e . in its folder; then it runs from any folder",
        )
    if (known := installed(OURS)) != __version__:
        return problem(
            "crate_jax",
            f"code of {__version__}, metadata of {known}: two versions are mixed",
            f"pip uninstall -y {OURS} until none is left, then install it again",
        )
    return ok("crate_jax", __version__)


def dependencies() -> Iterator[Finding]:
    """The core dependencies against their lower bounds."""
    core = [r for r in declaration()["requires"] if applies(r)]
    wrong = [line for requirement in core if (line := lacking(requirement))]
    if wrong:
        names = " ".join(f'"{str(r).split(";")[0].strip()}"' for r in core if lacking(r))
        yield problem("packages", "; ".join(wrong), f"pip install --upgrade {names}")
    else:
        shown = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
        versions = ", ".join(f"{name} {installed(name)}" for name in shown if installed(name))
        yield ok("packages", f"all {len(core)} dependencies are there: {versions}")
    numpy = installed("numpy")
    if numpy and numpy.startswith("1."):
        yield problem(
            "NumPy",
            f"{numpy}: packages built for NumPy 2 fail with it on import",
            'pip install --upgrade "numpy>=2"; if another package forbids that, make an '
            "environment of its own for crate_jax",
        )


def applies(requirement: Requirement, extra: str = "") -> bool:
    """Whether a requirement holds here, with an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def lacking(requirement: Requirement) -> str:
    """Expected and found, where a requirement is not met; else ""."""
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, expected {requirement.specifier}"
    return ""


def of_extra(name: str, extra: str) -> list[Requirement]:
    """What an installed package asks for in one of its extras alone, nested extras included."""
    requires = declaration()["requires"] if name == OURS else _requires(name)
    added = [r for r in requires if applies(r, extra) and not applies(r)]
    return [*added, *(below for r in added for e in r.extras for below in of_extra(r.name, e))]


def _requires(name: str) -> list[Requirement]:
    if installed(name) is None:
        return []
    parsed = []
    for text in metadata.requires(name) or []:
        try:
            parsed.append(Requirement(text))
        except InvalidRequirement:
            continue
    return parsed


def extras(accelerator: str | None = None) -> Iterator[Finding]:
    """Which extras are there, and the command for each that is not.

    Args:
        accelerator: "cuda" or "tpu" where the machine has one: its extra is a note if missing.
    """
    here, missing = [], []
    for extra in declaration()["extras"]:
        complete = not any(lacking(r) for r in of_extra(OURS, extra))
        (here if complete else missing).append(extra)
    if here:
        yield ok("extras", f"here: {', '.join(here)}")
    if accelerator in missing:
        missing.remove(accelerator)
        yield note("extras", f"not here: {accelerator}", install_command(accelerator))
    if missing:
        remedy = f"each, where it is wanted: {install_command('NAME')}"
        yield ok("extras", f"not here: {', '.join(missing)}", remedy)


def jax_versions() -> Iterator[Finding]:
    """JAX, jaxlib and the plugins against what JAX itself asks for, and plugins of two CUDAs."""
    version = installed("jax")
    if version is None:
        yield problem("JAX", "not installed", "pip install --upgrade jax")
        return
    plugins = [name for name in _plugins() if installed(name)]
    asked = [
        r
        for r in _requires("jax")
        if (applies(r) if r.name == "jaxlib" else r.name in plugins)  # those stand in extras
    ]
    wrong = sorted({line for r in asked if (line := lacking(r))})
    what = ", ".join(f"{name} {installed(name)}" for name in ("jax", "jaxlib", *plugins))
    if wrong:
        extra = next((c for c in ("cuda13", "cuda12") if any(c in p for p in plugins)), "")
        target = f'"jax[{extra}]=={version}"' if extra else f'"jax=={version}"'
        yield problem(
            "JAX",
            f"versions differ: {what} ({'; '.join(wrong)})",
            f"pip install --upgrade {target}; it brings the parts that belong to it",
        )
    else:
        yield ok("JAX", what)
    generations = {c for c in ("cuda12", "cuda13") for p in plugins if c in p}
    if len(generations) == 2:
        yield problem(
            "CUDA plugins",
            "plugins for CUDA 12 and CUDA 13 are both installed: JAX loads both",
            "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt (the driver must be 580 or newer "
            "for CUDA 13; otherwise remove those of cuda13)",
        )


def _plugins() -> list[str]:
    return [
        *(f"jax-cuda{c}-{part}" for c in (12, 13) for part in ("plugin", "pjrt")),
        *("libtpu", "jax-rocm60-plugin", "jax-rocm7-plugin"),
    ]


def clashes(has_gpu: bool = False) -> Iterator[Finding]:
    """Packages that are known to get into each other's way."""
    wrong = [
        f"{user} asks for protobuf{r.specifier}"
        for user in _PROTOBUF_USERS
        for r in _requires(user)
        if r.name == "protobuf" and applies(r) and lacking(r)
    ]
    if wrong:
        yield problem(
            "protobuf",
            f"protobuf {installed('protobuf')} is installed, but {', '.join(wrong)}",
            "pip install --upgrade protobuf " + _names(wrong) + " (together, so that pip finds a "
            "version that all accept)",
        )
    elif installed("protobuf"):
        yield ok("protobuf", f"{installed('protobuf')} suits all that use it")
    if len(both := [name for name in _OPENCV if installed(name)]) > 1:
        yield note(
            "OpenCV",
            f"{' and '.join(both)} write to the same folder cv2: the last one installed is used, "
            "and removing either breaks it",
            f"pip uninstall -y {' '.join(both)} && pip install opencv-python-headless",
        )
    tensorflow = [n for n in ("tensorflow", "tf-nightly") if installed(n)]
    if tensorflow:
        what = f"{tensorflow[0]} {installed(tensorflow[0])} is installed; crate_jax never imports"
        if has_gpu:
            yield note(
                "TensorFlow",
                f"{what} it, but whatever does takes the whole GPU from JAX",
                f"pip uninstall {tensorflow[0]} (or install tensorflow-cpu in its place); where "
                'your own code needs it: tf.config.set_visible_devices([], "GPU") first',
            )
        else:
            yield ok("TensorFlow", f"{what} it")


def _names(lines: Iterable[str]) -> str:
    return " ".join(line.split()[0] for line in lines)
