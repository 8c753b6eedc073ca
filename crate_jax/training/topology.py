"""Hardware that is not there: TPU slices and cards by name, and what their compiler says.

libtpu, which the extra `tpu` installs, compiles on any machine for a slice that it is given by
name, and JAX's plugin for CUDA, of the extra `cuda`, for a card that is described to it; nothing
can be run there.
"""

import dataclasses
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import jax

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
CARDS = ("h100",)
_FORM = re.compile(rf"(?:(\d+)\*)?({'|'.join(GENERATIONS)}):(\d+)x(\d+)(?:x(\d+))?")
_CARDS = re.compile(rf"({'|'.join(CARDS)}):(\d+)")
_HOST = 2  # chips along each of the two axes of a host, except where a slice is smaller
# Of libtpu, on a machine without TPU: do not look for one, and do not speak of it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Of an H100 SXM, what XLA's compiler asks of a card (its GpuTargetConfigProto).
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  l2_cache_size: 52428800
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# What needs a card to try kernels on is left out.
CUDA_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def devices(name: str) -> Sequence[jax.Device]:
    """What a name stands for, to compile for; to be called before JAX has looked for devices.

    Args:
        name: GENERATION:SHAPE, as v5e:4x4 (16 chips), v4:2x2x4 or v5p:2x2x1; 2*v5e:4x4 for two
            slices that are joined by the data centre's network; h100:8 for cards of one machine.

    Raises:
        ValueError: for a name of another form, a shape that no slice has, or without the package
            that compiles for it.
    """
    if cards := _CARDS.fullmatch(name):
        flags = (f"--{key}={str(value).lower()}" for key, value in CUDA_OPTIONS.items())
        os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *flags)).strip()
        options = {"target_config": _H100, "topology": f"1x1x{cards[2]}"}
        return _described(name, "cuda", cards[1], options)
    form = _FORM.fullmatch(name)
    if not form:
        raise ValueError(
            f"topology: expected GENERATION:SHAPE such as v5e:4x4, of {', '.join(GENERATIONS)}, "
            f"2*v5e:4x4 for two slices, or {CARDS[0]}:8 for eight cards, got {name!r}"
        )
    slices, generation, *sides = form.groups()
    if generation in ("v4", "v5p") and sides[2] is None:
        raise ValueError(
            f"topology: expected three sides for {generation}, such as {generation}:2x2x2, got "
            f"{name!r}"
        )
    options: dict[str, object] = {"num_slices": int(slices)} if slices else {}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores as one device
    if generation in ("v5e", "v6e"):
        rows, columns = (min(_HOST, int(side)) for side in sides[:2])
        options["chips_per_host_bounds"] = (rows, columns, 1)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    return _described(name, "tpu", name.partition("*")[2] or name, options)


# Package, what it does, and the extra that brings it, by platform.
_COMPILERS = {
    "tpu": ("libtpu", "which compiles for TPU", "tpu"),
    "cuda": ("jax_cuda13_plugin", "which compiles for CUDA", "cuda"),
}


def _described(
    name: str, platform: str, shape: str, options: dict[str, object]
) -> Sequence[jax.Device]:
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for absent devices can be kept, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(
            platform=platform, topology_name=shape, **options
        ).devices
    except Exception as error:
        package, what, extra = _COMPILERS[platform]
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"topology {name}: expected the package {package}, {what}; install it with "
                f'pip install "crate-jax[{extra}]"'
            ) from error
        raise ValueError(
            f"topology: expected a shape that {platform.upper()} devices have, got {name!r}: "
            f"{error}"
        ) from error


def absent(mesh: jax.sharding.Mesh) -> bool:
    """Whether a mesh is of devices that programs can only be compiled for."""
    return mesh.devices.flat[0] not in jax.devices()


@dataclasses.dataclass(frozen=True)
class Exhausted:
    """What a program needs of a device's memory, and what there is, in bytes."""

    needed: float
    there: float


def exhausted(error: Exception) -> Exhausted | None:
    """What a compiler's error says of memory; None where it is another error."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    size = r"([\d.]+)([KMG])"
    for form in (
        rf"Used {size} of {size} hbm",
        rf"required for HLO temporaries \({size}\) exceeds available HBM \({size}\)",
    ):
        if found := re.search(form, str(error)):
            return Exhausted(float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]])
    return None


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """How often a compiled program communicates in a run of it, and the bytes that result.

    Args:
        text: of the compiled program (`jax.stages.Compiled.as_text`).

    Returns:
        {"all-reduce": (how many, bytes on each device), ...}; loops count as often as they run,
        where the compiler knows.
    """
    computations, entry = _computations(text)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            for kind, size in _communication(line):
                counts[kind] += times
                sizes[kind] += times * size
            if body := re.search(r"\bwhile\(.*body=%?([\w.\-]+)", line):
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                visit(body[1], times * int(trips[1]) if trips else times)

    visit(entry, 1)
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines by the name of the computation that they are in, and which one is run."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            found[name] = []
        elif name:
            found[name].append(line)
    return found, entry


def _communication(line: str) -> Iterator[tuple[str, int]]:
    kinds = "|".join(COLLECTIVES)
    found = re.match(rf"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({kinds})(-start)?\(", line)
    if not found:
        return
    results = [
        _BYTES.get(kind, 4) * _product(sides)
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", found[1])
    ]
    # An all-gather that is started names its operand beside its result.
    whole = found[3] and found[2] != "all-reduce"
    yield found[2], max(results) if whole else sum(results)


def _product(sides: str) -> int:
    total = 1
    for side in filter(None, sides.split(",")):
        total *= int(side)
    return total
