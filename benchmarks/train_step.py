# PYTHON_ARGCOMPLETE_OK
"""How fast a config's training step runs on the default devices, input left out.

    python -m benchmarks.train_step --config=configs/imagenet_b.py --batch-size=256
    python -m benchmarks.train_step --config=configs/imagenet_b.py:model=vit --remat=dots
    python -m benchmarks.train_step --config=configs/scenes_tiny.py --steps=50

Prints images/s, milliseconds a step, the operations of an image (forward and backward, without
rematerialisation, counted by XLA before its optimisations), model FLOPs utilisation where the
chip's peak is known, and the device memory that the compiler plans. The batch is random, lies on
the devices already, and every step's state is donated to the next, as in training.
"""

import statistics
import time

from crate_jax import command_line


def main():
    parser = command_line.parser("python -m benchmarks.train_step", __doc__)
    parser.add_argument("--config", required=True, metavar=command_line.CONFIG, help="whose step")
    parser.add_argument("--batch-size", type=int, help="over all devices; default: the config's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="config.remat")
    parser.add_argument("--fsdp", type=int, help="devices that parameters are split over")
    parser.add_argument("--accumulate", type=int, help="parts of a batch")
    parser.add_argument("--steps", type=int, default=20, help="timed")
    a = command_line.parse(parser)
    names = ("batch_size", "dtype", "remat", "fsdp", "accumulate")
    changes = {name: getattr(a, name) for name in names if getattr(a, name) is not None}
    result = measure(load(a.config, **changes), a.steps)
    width = max(map(len, result))
    for name, value in result.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):{width}}  {shown}")


def load(argument, **changes):
    """A config by its command-line form, resolved, with top-level keys replaced."""
    from crate_jax.config import read, resolve

    path, _, value = command_line.packaged_config(argument).partition(":")
    config = read(path, value or None)
    for name, change in changes.items():
        config[name] = change
    return resolve(config)


def measure(config, count=20):
    """Numbers by name; times are medians over `count` steps, each waited for."""
    import jax
    import numpy as np

    from crate_jax.models import base, variants
    from crate_jax.training import optim, sharding, throughput
    from crate_jax.training.step import flops_per_image, initial, make_step, metric_names, objective

    mesh = sharding.make_mesh(config.fsdp)
    sharding.check_batch("batch_size", config.batch_size, mesh, config.accumulate)
    model_config = variants.from_dict(config.model.to_dict())
    options = {"dtype": config.dtype, "remat": config.remat}
    definition, _ = base.split(variants.abstract(model_config, **options))
    optimizer = optim.optimizer(config.optimizer, lambda _: config.optimizer.learning_rate)

    def init(key):
        params = base.split(variants.build(model_config, key, **options))[1]
        return params, initial(optimizer, params, metric_names(config))

    key = jax.random.key(0)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init, key))
    params, training = jax.jit(init, out_shardings=shardings)(key)
    step = make_step(definition, objective(config), optimizer, seed=0, accumulate=config.accumulate)
    rng = np.random.default_rng(0)
    local = config.batch_size // jax.process_count()
    batch = {
        "image": rng.integers(0, 256, (local, *model_config.image_size, 3), np.uint8),
        "label": rng.integers(0, max(1, model_config.classes), local, np.int32),
    }
    batch = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    begin = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
        .lower(params, training, batch)
        .compile()
    )
    compilation = time.perf_counter() - begin
    seconds = []
    for _ in range(3 + count):
        begin = time.perf_counter()
        params, training = jax.block_until_ready(compiled(params, training, batch))
        seconds.append(time.perf_counter() - begin)
    second = statistics.median(seconds[3:])
    device, flops = mesh.devices.flat[0], flops_per_image(config, model_config)
    rate = config.batch_size / second
    result = {
        "device": f"{mesh.size} x {device.device_kind}",
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "images_per_second": rate,
        "milliseconds_a_step": 1e3 * second,
        "GFLOP_an_image": flops / 1e9,
        "TFLOP_a_second": rate * flops / 1e12,
        "compilation_seconds": compilation,
    }
    if peak := throughput.peak_flops(device):
        result["MFU"] = rate * flops / (peak * mesh.size)
    if memory := compiled.memory_analysis():
        held, work = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        result["GiB_a_device"] = (held + work) / 2**30
    return result


if __name__ == "__main__":
    main()
