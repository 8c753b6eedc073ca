"""Environment variables that change what JAX does, and files that hide packages.

Values are printed of variables named here alone, so that no secret gets into a report.
"""

import glob
import os
import pathlib
from collections.abc import Iterator, Mapping

from crate_jax.doctor.findings import Finding, note, problem
from crate_jax.doctor.machine import home

_CUDA_LIBRARIES = ("libcudart.so*", "libcublas.so*", "libcudnn.so*", "libnccl.so*")
_PACKAGES = (
    *("absl", "crate_jax", "cv2", "flax", "grain", "jax", "jaxlib", "jinja2", "matplotlib"),
    *("ml_collections", "numpy", "optax", "orbax", "packaging", "PIL", "rich", "safetensors"),
    *("scipy", "skimage", "tensorflow", "torch"),
)


def platforms(
    has_gpu: bool, has_tpu: bool, environment: Mapping[str, str] = os.environ
) -> Finding | None:
    """JAX_PLATFORMS and CUDA_VISIBLE_DEVICES, where they keep JAX from the accelerator."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        if not (value := environment.get(name)):
            continue
        wanted = set(value.lower().split(","))
        if wanted <= {"cpu"} and (has_gpu or has_tpu):
            hardware = "GPU" if has_gpu else "TPU"
            what = f"{value}: keeps JAX from this machine's {hardware}"
            return problem(name, what, f"unset {name}")
        if not has_gpu and wanted & {"cuda", "gpu", "rocm"}:
            return problem(name, f"{value}, but no GPU is found here", f"unset {name}")
        if not has_tpu and "tpu" in wanted:
            return problem(name, f"{value}, but no TPU is found here", f"unset {name}")
        return note(name, f"{value}: JAX uses nothing else", f"unset {name} to let JAX choose")
    if has_gpu and environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return problem(
            "CUDA_VISIBLE_DEVICES",
            f"{environment['CUDA_VISIBLE_DEVICES']!r} hides every GPU",
            "unset CUDA_VISIBLE_DEVICES",
        )
    return None


def gpu_memory(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """How JAX takes GPU memory, where that was changed."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    if environment.get(name, "true").lower() in ("false", "0"):
        yield note(
            name,
            "false: memory is taken as needed; slower, and fragments near the limit",
            f"unset {name}, unless other programs share the GPU",
        )
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        if value := environment.get(name):
            share = _number(value)
            if share is None or not 0 < share <= 1:
                yield problem(name, f"{value!r}: expected a share such as 0.75", f"unset {name}")
            else:
                yield note(name, f"JAX takes {share:.0%} of a GPU's memory (default 75 %)")
    name = "XLA_PYTHON_CLIENT_ALLOCATOR"
    if environment.get(name) == "platform":
        yield note(name, "platform: every buffer is allocated anew, which is slow", f"unset {name}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def library_path(has_plugin: bool, environment: Mapping[str, str] = os.environ) -> Finding | None:
    """CUDA libraries on LD_LIBRARY_PATH go before those that JAX's wheels bring along."""
    folders = [f for f in environment.get("LD_LIBRARY_PATH", "").split(":") if f]
    found = [
        home(library)
        for folder in folders
        for pattern in _CUDA_LIBRARIES
        for library in sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))[:1]
    ]
    if not found or not has_plugin:
        return None
    return note(
        "LD_LIBRARY_PATH",
        f"{', '.join(found[:3])} take the place of the libraries that JAX was built for",
        "unset LD_LIBRARY_PATH; JAX's wheels bring their own",
    )


def shadows(folder: str | os.PathLike = ".") -> Iterator[Finding]:
    """Files in the current directory that Python, or --config, takes before the installed ones."""
    here = pathlib.Path(folder).resolve()
    ours = pathlib.Path(__file__).parents[1]
    for name in _PACKAGES:
        for path in (here / f"{name}.py", here / name / "__init__.py"):
            if path.is_file() and path.parent != ours:
                shown = path if path.name != "__init__.py" else path.parent
                yield problem(
                    "current directory",
                    f"{home(str(shown))} hides the package {name} from python -m",
                    "rename it, or start from another directory",
                )
    packaged = next((f for f in (ours / "configs", ours.parent / "configs") if f.is_dir()), None)
    own = here / "configs"
    if packaged and own.is_dir() and own.resolve() != packaged.resolve():
        same = sorted({p.name for p in own.glob("*.py")} & {p.name for p in packaged.glob("*.py")})
        if hidden := [n for n in same if n != "__init__.py" and _differ(own / n, packaged / n)]:
            yield note(
                "configs",
                f"./configs/{hidden[0]} is not the package's file of that name"
                + (f", nor are {len(hidden) - 1} more" if len(hidden) > 1 else "")
                + "; --config=configs/NAME.py takes those here first",
                "rename them if that is not meant",
            )


def _differ(one: pathlib.Path, other: pathlib.Path) -> bool:
    return one.read_bytes() != other.read_bytes()


def xla_flags(environment: Mapping[str, str] = os.environ) -> Finding | None:
    """XLA_FLAGS: they change both results and what is measured."""
    if value := environment.get("XLA_FLAGS"):
        return note("XLA_FLAGS", value, "unset XLA_FLAGS where they are not meant")
    return None
