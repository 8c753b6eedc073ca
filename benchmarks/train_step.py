# PYTHON_ARGCOMPLETE_OK
"""How fast training steps and forward passes run on the devices that there are, input left out.

    python -m benchmarks.train_step                            # everything, for the table
    python -m benchmarks.train_step --models=crate-b16,vit-b16 --dtype=bfloat16 --batch-size=256
    python -m benchmarks.train_step --smoke                    # every path once, tiny: no speeds
    python -m benchmarks.train_step --config=configs/imagenet_b.py --remat=dots

A row for each network, dtype and backend of attention that the devices have: the training step at
the network's own size, and with --models the forward pass with and without capture at 224 and 480
px. Images a second, operations of an image (counted by XLA before its optimisations; forward and
backward, without rematerialisation), model FLOPs utilisation where the chip's peak is known, the
memory a device that the compiler plans, and the seconds that compiling took. The batch is random
and lies on the devices already; a step's state is donated to the next, as in training. Times are
medians.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from crate_jax import allocator, command_line

MODELS = (
    *("crate-s8", "crate-b8", "crate-b16", "crate-l16", "crate-alpha-b16"),
    *("vit-s8", "vit-b16"),
)
SIZES = (224, 480)
DTYPES = ("float32", "bfloat16")
BACKENDS = ("xla", "cudnn", "pallas")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one program; times in seconds, memory in bytes on a device."""

    name: str
    what: str
    dtype: str
    backend: str
    images: int
    seconds: float
    flops: float
    peak: float | None
    memory: int
    compilation: float

    def __str__(self) -> str:
        rate = self.images / self.seconds
        mfu = f"{100 * rate * self.flops / self.peak:.1f} %" if self.peak else "-"
        return (
            f"{self.name:16} {self.what:18} {self.dtype:9} {self.backend:7}{self.images:>6}"
            f"{rate:>11,.1f}{1e3 * self.seconds:>10,.1f}{self.flops / 1e9:>10,.2f}{mfu:>8}"
            f"{self.memory / 2**30:>8,.2f}{self.compilation:>9,.1f}"
        )


HEAD = (
    f"{'network':16} {'what':18} {'dtype':9} {'attends':7}{'batch':>6}{'images/s':>11}{'ms':>10}"
    f"{'GFLOP':>10}{'MFU':>8}{'GiB':>8}{'compile':>9}"
)


def main():
    parser = command_line.parser("python -m benchmarks.train_step", __doc__)
    parser.add_argument("--config", metavar=command_line.CONFIG, help="the step of a config alone")
    parser.add_argument(
        "--models", default=",".join(MODELS), help="named sizes, with commas (default: %(default)s)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks, two images, hardly optimised"
    )
    parser.add_argument("--batch-size", type=int, help="over all devices; default 64 a device")
    parser.add_argument("--dtype", choices=DTYPES, help="of the computation; default both")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="config.remat")
    parser.add_argument("--fsdp", type=int, help="devices that parameters are split over")
    parser.add_argument("--accumulate", type=int, help="parts of a batch")
    parser.add_argument("--steps", type=int, default=20, help="timed")
    a = command_line.parse(parser)
    allocator.keep_freed_memory()  # as every run does, and before JAX is imported
    names = ("batch_size", "remat", "fsdp", "accumulate")
    changes = {name: getattr(a, name) for name in names if getattr(a, name) is not None}
    if a.smoke:
        import jax

        # Whether every path runs is the question, and XLA's optimiser nearly all of the time.
        jax.config.update("jax_disable_most_optimizations", True)
    print(device_line(), flush=True)
    print(HEAD)
    for row in _of_config(a, changes) if a.config else _of_models(a, changes):
        print(row, flush=True)


def device_line() -> str:
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _of_config(a, changes) -> Iterator[Row]:
    if a.dtype:
        changes |= {"dtype": a.dtype}
    config = load(a.config, **changes)
    for backend in backends_of(config):
        yield training(config, backend, a.steps)


def _of_models(a, changes) -> Iterator[Row | str]:
    import jax

    names = ("crate-testing", "vit-testing") if a.smoke else a.models.split(",")
    count = 2 if a.smoke else a.steps
    images = a.batch_size or (2 if a.smoke else 64) * jax.device_count()
    for name in names:
        for dtype in (a.dtype,) if a.dtype else DTYPES:
            config = of_model(name, dtype=dtype, **changes | {"batch_size": images})
            for backend in backends_of(config):
                programs = [functools.partial(training, config, backend, count)]
                for size in (32, 40) if a.smoke else SIZES:
                    for capture in (False, True):
                        programs.append(
                            functools.partial(forward, config, backend, size, capture, count)
                        )
                for measure in programs:
                    yield _or_what_failed(measure, f"{name} {dtype} {backend}")


def _or_what_failed(measure: Callable[[], Row], what: str) -> Row | str:
    """A row; a line instead where a program does not fit, so that the others are still measured."""
    import jax

    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        return f"{what}: {str(error).splitlines()[0][:120]}"


def load(argument, **changes):
    """A config by its command-line form, resolved, with top-level keys replaced."""
    from crate_jax.config import read, resolve

    path, _, value = command_line.packaged_config(argument).partition(":")
    config = read(path, value or None)
    for name, change in changes.items():
        config[name] = change
    return resolve(config)


def of_model(name, **changes):
    """A config that trains a named size with AdamW."""
    from crate_jax.config import default, model, resolve

    config = default()
    config.steps, config.model = 1, model(name)
    for key, change in changes.items():
        config[key] = change
    return resolve(config)


def backends_of(config) -> Iterator[str]:
    """The backends of attention that these devices have for a config's network."""
    from crate_jax.models import variants
    from crate_jax.training import program, sharding

    network = variants.from_dict(config.model.to_dict())
    for backend in BACKENDS:
        try:
            program.choose_attention(_with(config, backend), network, sharding.make_mesh())
        except ValueError:
            continue
        yield backend


def _with(config, backend):
    import ml_collections

    values = config.to_dict() | {"attention_backend": backend}
    return ml_collections.FrozenConfigDict(values)


def training(config, backend: str, count: int = 20) -> Row:
    """A row of the training step."""
    import jax

    from crate_jax.models import variants
    from crate_jax.training import program, sharding
    from crate_jax.training.step import flops_per_image

    mesh = sharding.make_mesh(config.fsdp)
    sharding.check_batch("batch_size", config.batch_size, mesh, config.accumulate)
    network = variants.from_dict(config.model.to_dict())
    rate = config.optimizer.learning_rate
    made = program.make(_with(config, backend), network, mesh, lambda _: rate)
    state = made.init(jax.random.key(0))
    batch = random_batch(config.batch_size, network, mesh)
    compiled, compilation = _timed(lambda: made.step.lower(*state, batch).compile())

    def once():
        nonlocal state
        state = jax.block_until_ready(compiled(*state, batch))

    flops = flops_per_image(config, network)
    what = f"step {network.image_size[0]} px"
    return _row(config, what, backend, mesh, compiled, compilation, flops, once, count)


def forward(config, backend: str, size: int, capture: bool, count: int = 20) -> Row:
    """A row of the forward pass at an image size, with every layer captured or none."""
    import jax

    from crate_jax.models import base, variants
    from crate_jax.training import program, sharding, throughput

    mesh = sharding.make_mesh(config.fsdp)
    network = variants.from_dict(config.model.to_dict())
    made = program.make(_with(config, backend), network, mesh, lambda _: 0.0)
    params, _ = made.init(jax.random.key(0))
    patch = network.patch_size
    network = dataclasses.replace(network, image_size=(size // patch * patch,) * 2)
    images = random_batch(config.batch_size, network, mesh)["image"]
    run = jax.jit(base.forward(made.definition, capture))
    compiled, compilation = _timed(lambda: run.lower(params, images).compile())
    flops = throughput.count_flops(run, params, images) / config.batch_size
    what = f"forward {network.image_size[0]} px" + " all" * capture
    return _row(
        config,
        what,
        backend,
        mesh,
        compiled,
        compilation,
        flops,
        lambda: jax.block_until_ready(compiled(params, images)),
        count,
    )


def _row(config, what, backend, mesh, compiled, compilation, flops, once, count) -> Row:
    from crate_jax.training import throughput

    peak = throughput.peak_flops(mesh.devices.flat[0])
    plan = compiled.memory_analysis()
    seconds = [_timed(once)[1] for _ in range(1 + count)][1:]
    return Row(
        f"{config.model.family} {config.model.dim}/{config.model.patch_size}",
        what,
        config.dtype,
        backend,
        config.batch_size,
        statistics.median(seconds),
        flops,
        peak and peak * mesh.size,
        plan.argument_size_in_bytes + plan.temp_size_in_bytes if plan else 0,
        compilation,
    )


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin


def random_batch(size, network, mesh):
    """Random images and labels on the devices."""
    import jax
    import numpy as np

    from crate_jax.training import sharding

    rng = np.random.default_rng(0)
    local = size // jax.process_count()
    batch = {
        "image": rng.integers(0, 256, (local, *network.image_size, 3), np.uint8),
        "label": rng.integers(0, max(1, network.classes), local, np.int32),
    }
    return sharding.put_batch(batch, sharding.batch_sharding(mesh))


if __name__ == "__main__":
    main()
