"""What a run would need at the least, from shapes and arithmetic: said before anything is built."""

import os

import jax
import ml_collections

from crate_jax.models import variants
from crate_jax.models.base import ImageModelConfig
from crate_jax.progress import duration_text
from crate_jax.training import throughput, topology
from crate_jax.training.console import say

MOST_LAYERS = 1000
# Batches that one worker may hold: 7 in shared memory and the rows of one (slopes of 6.84 and 0.98,
# batches of 64 to 1,024 images of 224 px). The thread of `workers=0`: 5 (4.4). And a worker itself.
_HELD, _HELD_BY_THREAD, _WORKER = 8, 5, 0.11e9
# Of tracing and compiling training and evaluation, on one core; layers are unrolled.
SECONDS_A_LAYER = 1.0


def check(config: ml_collections.ConfigDict, model: ImageModelConfig, mesh: jax.sharding.Mesh):
    """Refuses what cannot fit into memory or be compiled in a quarter of an hour.

    Lower bounds: float32 parameters, their gradients and one moment; a batch of uint8 images on
    the host; one tensor of tokens a layer for the backward pass; one image's attention.

    Args:
        config: resolved.
        model: its network.
        mesh: the devices.

    Raises:
        ValueError: names the need, what there is, and the keys to change.
    """
    layers = model.depth + getattr(model, "decoder_depth", 0)
    parameters = variants.count_parameters(model)
    state = 12 * parameters / mesh.shape["fsdp"]
    size = f"{parameters:,} parameters, {_gigabytes(12 * parameters)} with gradients and a moment"
    if layers > MOST_LAYERS:
        raise ValueError(
            f"model.depth: expected at most {MOST_LAYERS:,} layers, got {layers:,} ({size}), which "
            f"take about {duration_text(layers * SECONDS_A_LAYER)} to compile"
        )
    local = config.batch_size / (mesh.size * config.accumulate)
    width = 2 if config.dtype == "bfloat16" else 4
    tokens = 1 + model.patches
    needs = {
        f"the state of {layers:,} layers ({size}); a smaller model": state,
        f"the tokens of {local:,.0f} images in {layers:,} layers; a smaller batch_size or more "
        "accumulate": local * tokens * model.dim * layers * width,
        f"the attention of one image of {tokens:,} tokens; larger model.patch_size": 4 * tokens**2,
    }
    for what, need in needs.items():
        _expect(need, device_memory(mesh.devices.flat[0]), "a device", what)
    pixels = 3 * model.image_size[0] * model.image_size[1] / jax.process_count()
    for key, count in (
        ("batch_size", config.batch_size),
        ("evaluation.batch_size", config.evaluation.batch_size),
    ):
        _expect(count * pixels, host_memory(), "the host", f"{key}={count:,} images")
    if layers * SECONDS_A_LAYER > 60:
        seconds = duration_text(layers * SECONDS_A_LAYER)
        say(f"building  {layers} layers: tracing and compiling takes about {seconds}")


def loader_line(
    config: ml_collections.ConfigDict, held_out: int, mesh: jax.sharding.Mesh, training: bool = True
) -> str:
    """What batches made ahead will take of the host's memory, in one line.

    They are all there as soon as the devices are slower than the input, as while compiling.

    Args:
        config: resolved.
        held_out: how many images are evaluated.
        mesh: the devices; where these are not there, the host is not either, and not compared.
        training: whether training batches are made too.

    Raises:
        ValueError: that is more than the host has.
    """
    workers = config.data.workers
    most = workers * _HELD or _HELD_BY_THREAD
    size = config.evaluation.batch_size
    batches = [(size, min(most, -(-held_out // size)))]
    if training:
        batches.append((config.batch_size, most))
    image = 3 * config.data.image_size**2 / jax.process_count()
    need = sum(size * count * image + workers * _WORKER for size, count in batches)
    what = f"{sum(count for _, count in batches)} batches ahead in " + (
        f"{workers} workers" if workers else "a thread"
    )
    if not topology.absent(mesh):
        remedy = "fewer data.workers, or a smaller batch_size or evaluation.batch_size"
        _expect(need, host_memory(), "the host", f"{what}; {remedy}")
    return f"loader    up to {_gigabytes(need)} of the host for {what}"


def _expect(need: float, there: float, where: str, what: str) -> None:
    if need > there:
        raise ValueError(
            f"memory of {where}: expected at most {_gigabytes(there)}, got {_gigabytes(need)} for "
            f"{what}"
        )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def device_memory(device: jax.Device) -> float:
    """Bytes that a device has; those of the host where it does not say (a CPU)."""
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device of a topology, which is not there
        limit = throughput.datasheet_memory(device)
    return limit or host_memory()


def host_memory() -> float:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
