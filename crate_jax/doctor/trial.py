"""JAX at work: devices, a matrix product, a training step. Runs in a process of its own.

    python -m crate_jax.doctor.trial

A backend whose device is held by another process can wait for ever, and a broken driver can end the
process; so the doctor starts this one and reads a line of JSON for every stage that was reached.
"""

import importlib
import json
import sys
import time
from typing import Any

# Compiled packages and those that use protobuf: these break on import when versions do not fit.
IMPORTS = ("numpy", "cv2", "simplejpeg", "pycocotools.mask", "tensorboardX", "tensorflow_datasets")
_SECONDS = 1.0  # of matrix products, for each of the two types


def _tell(stage: str, **values: Any) -> None:
    print(json.dumps({"stage": stage, **values}), flush=True)


def imports() -> None:
    """Imports what tends to break, and tells what did."""
    broken = {}
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises
            lines = str(error).strip().splitlines() or [""]
            broken[name] = f"{type(error).__name__}: {lines[0]}"
    _tell("imports", broken=broken)


def devices() -> list[Any]:
    """Initialises the backend, and tells kinds and memory."""
    import jax

    start = time.perf_counter()
    found = jax.local_devices()
    _tell(
        "devices",
        platform=found[0].platform,
        kinds=[device.device_kind for device in found],
        bytes=[(_statistics(device) or {}).get("bytes_limit") for device in found],
        count=jax.device_count(),
        seconds=time.perf_counter() - start,
    )
    return found


def _statistics(device: Any) -> dict | None:
    try:
        return device.memory_stats()
    except Exception:  # a backend without them
        return None


def matmul(device: Any, side: int) -> None:
    """Products of two (side, side) matrices on one device: 2 side^3 operations each.

    The first call compiles and is not timed. Calls are asynchronous, so a batch of them is timed
    from before the first to after the last has ended; batches double until they take a second.
    """
    import jax
    import jax.numpy as jnp

    multiply = jax.jit(lambda a, b: a @ b)
    rates = {}
    for dtype in ("float32", "bfloat16"):
        keys = jax.random.split(jax.random.key(0))
        a, b = (
            jax.device_put(jax.random.normal(key, (side, side), jnp.dtype(dtype)), device)
            for key in keys
        )
        jax.block_until_ready(multiply(a, b))
        count, seconds = 1, 0.0
        while seconds < _SECONDS / 2:
            count *= 2 if seconds else 1
            start = time.perf_counter()
            for _ in range(count):
                out = multiply(a, b)
            jax.block_until_ready(out)
            seconds = time.perf_counter() - start
        rates[dtype] = 2 * side**3 * count / seconds / 1e9
    _tell("matmul", side=side, gflops=rates)


def training_step(steps: int = 20) -> None:
    """Steps of the smallest CRATE on one batch of scenes, over all devices, as in training.

    The same batch every time, so that the loss must fall; the first step compiles.
    """
    import jax
    import numpy as np

    from crate_jax import config as configuration
    from crate_jax import data
    from crate_jax.models import base, variants
    from crate_jax.training import optim, sharding
    from crate_jax.training import step as training

    config = configuration.default()
    config.model = configuration.model("crate-testing")
    config.data.image_size = max(config.model.image_size)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    source = data.source(config.data, "train")
    examples = [source[index] for index in range(8 * mesh.size)]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
    batch = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    model_config = variants.from_dict(config.model.to_dict())
    definition, params = base.split(variants.build(model_config))
    optimizer = optim.optimizer(config.optimizer, lambda _: config.optimizer.learning_rate)
    state = jax.device_put((params, training.initial(optimizer, params)), sharding.replicated(mesh))
    run = jax.jit(
        training.make_step(definition, training.objective(config), optimizer, seed=0),
        donate_argnums=(0, 1),
    )
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        params, progress = jax.block_until_ready(run(*state, batch))
        seconds.append(time.perf_counter() - start)
        losses.append(training.read_sums(progress)["train/loss"])
        bad = int(progress["bad_step"])
        state = (params, training.reset_sums(progress))
    _tell(
        "step",
        first=losses[0],
        last=losses[-1],
        steps=steps,
        finite=bad < 0 and bool(np.isfinite(losses).all()),
        compilation=seconds[0],
        milliseconds=1e3 * float(np.median(seconds[1:])),
        images=len(examples),
        devices=mesh.size,
    )


def main() -> int:
    """All stages; a stage that fails tells why, and the next is tried."""
    found: list[Any] = []

    def start() -> None:
        found.extend(devices())

    def product() -> None:
        matmul(found[0], 1024 if found[0].platform == "cpu" else 8192)

    for name, stage in (
        ("imports", imports),
        ("devices", start),
        ("matmul", product),
        ("step", training_step),
    ):
        try:
            stage()
        except Exception as error:
            _tell(name, error=f"{type(error).__name__}: {error}")
            if name == "devices":
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
