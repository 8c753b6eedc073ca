"""The dry run: everything that a run will need is tried, before hours are spent on it.

With `--topology` for hardware that is not there: the same programs, by that hardware's compiler.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from crate_jax.config import Durations
from crate_jax.convert import run_directory
from crate_jax.data import processes
from crate_jax.training import budget, evaluation, inputs, sharding, throughput, topology
from crate_jax.training.console import say
from crate_jax.training.program import Program

GIB = 2**30
# Of a chip's memory, what a plan may fill: the compiler keeps a little for itself.
FILLED = 0.95


def check(
    setting: evaluation.Setting,
    plan: Durations,
    program: Program,
    evals: evaluation.Evaluation,
    directory: pathlib.Path,
    flops: float,
) -> None:
    """Lists the parameters, reads a batch of each split, compiles, says what will happen.

    Nothing is trained and nothing written.

    Args:
        setting: of the run.
        plan: its durations.
        program: its functions.
        evals: its evaluators.
        directory: the workdir.
        flops: of training on one image.

    Raises:
        ValueError: where the compiler says that something does not fit; names what to change.
    """
    say(parameter_overview.get_parameter_overview(program.shapes[0], include_stats=False))
    split = sharding.batch_sharding(setting.mesh)
    data, config = setting.data, setting.config
    processes.make_room(config.data.workers)
    # One of the workers: the batches that all of them make ahead would take minutes.
    reading = ml_collections.ConfigDict(config)
    reading.data.workers = min(1, config.data.workers)
    data = dataclasses.replace(data, config=reading)
    with data.batches() as batches:
        batch = next(batches)
    say(f"read      a training batch of {_shape(batch['image'])}")
    images = sharding.batch_shapes(inputs.pixels_and_labels(batch), split)
    step = _compiled(lambda: program.step.lower(*program.shapes, images).compile(), setting)
    held_out = next(data.once("val", setting.batch_size))
    say(f"read      a held-out batch of {_shape(held_out['image'])}")
    compiled = _compiled(lambda: evals.compile(program.shapes[0], held_out), setting, False)
    say("compiled  the training step and the evaluation")
    say("\n".join(_memory(setting, program, step, compiled)))
    if topology.absent(setting.mesh):
        say("\n".join(_work(setting, step, flops)))
    say("\n".join(_text(config, data, plan, program, directory)))


def _shape(array: Any) -> str:
    return " x ".join(str(side) for side in array.shape)


def _compiled(compile: Callable[[], Any], setting: evaluation.Setting, training: bool = True):
    """What a compiler makes, or what does not fit and what to change."""
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        memory = topology.exhausted(error)
        if memory is None:
            raise
        raise _too_large(memory, setting, training) from error
    if topology.absent(setting.mesh):  # CUDA's compiler plans more than a card has
        there = budget.device_memory(setting.mesh.devices.flat[0])
        programs = compiled.values() if isinstance(compiled, dict) else (compiled,)
        needed = max((_size(program) for program in programs), default=0)
        if needed > there:
            raise _too_large(topology.Exhausted(needed, there), setting, training)
    return compiled


def _size(program: jax.stages.Compiled) -> int:
    """Bytes that a program needs of a device; what it donates is not counted twice."""
    plan = program.memory_analysis()
    made = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + made


def _too_large(
    memory: topology.Exhausted, setting: evaluation.Setting, training: bool
) -> ValueError:
    images = setting.config.batch_size if training else setting.batch_size
    what, remedy = f"evaluating {images:,} images", "a smaller evaluation.batch_size"
    if training:
        what, remedy = f"a training step on {images:,} images", _remedy(setting, memory)
    return ValueError(
        f"memory of a device: expected at most {memory.there / GIB:.2f} GiB, got "
        f"{memory.needed / GIB:.2f} for {what} on {setting.mesh.size} x "
        f"{setting.mesh.devices.flat[0].device_kind}; {remedy}"
    )


def _remedy(setting: evaluation.Setting, memory: topology.Exhausted) -> str:
    """Which keys to change: parts, if work takes the memory that the state leaves."""
    config, mesh = setting.config, setting.mesh
    parts = config.accumulate
    while parts * mesh.size * 2 <= config.batch_size:
        parts *= 2
        if memory.needed * config.accumulate / parts <= FILLED * memory.there:
            break
    whole = config.fsdp == 1 < mesh.size
    fsdp = f", or --config.fsdp={mesh.size} where the state is large" if whole else ""
    return (
        f"--config.accumulate={parts} (about {memory.needed / GIB * config.accumulate / parts:.1f} "
        f"GiB), --config.remat=dots, a smaller batch_size, more chips{fsdp}"
    )


def _memory(
    setting: evaluation.Setting,
    program: Program,
    step: jax.stages.Compiled,
    compiled: dict[str, jax.stages.Compiled],
) -> Iterator[str]:
    """What the compiler plans, beside what a device has, and the largest batch."""
    memory, config, mesh = step.memory_analysis(), setting.config, setting.mesh
    if memory is None:
        return
    held, work = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    there = budget.device_memory(mesh.devices.flat[0])
    yield (
        f"memory    {(held + work) / GIB:.2f} GiB a device: {held / GIB:.2f} state and batch, "
        f"{work / GIB:.2f} at work, of {there / GIB:.1f} that it has"
    )
    for name, one in compiled.items():
        yield f"          {_size(one) / GIB:.2f} GiB for the evaluator {name}"
    if not topology.absent(mesh):
        return
    at_once = config.batch_size / mesh.size / config.accumulate
    # Gradients are there whatever the batch; all else at work is taken to grow with it.
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(program.shapes[0])) / config.fsdp
    largest = (FILLED * there - held - gradients) / max(work - gradients, 1) * at_once
    fits = int(largest) * mesh.size * config.accumulate
    yield (
        f"largest   about {int(largest):,} images a chip at once, a batch of {fits:,}; now "
        f"{at_once:,.0f}"
    )
    yield "needed    " + ", ".join(
        f"{key} no ({config[key]} is set)" for key in ("accumulate", "remat", "fsdp")
    )


def _work(setting: evaluation.Setting, step: jax.stages.Compiled, flops: float) -> Iterator[str]:
    """What a step communicates and computes."""
    mesh, config = setting.mesh, setting.config
    for kind, (count, size) in topology.collectives(step.as_text()).items():
        yield f"{kind:<18} {count:,} a step, {size / 2**20:,.1f} MiB on each chip"
    total = flops * config.batch_size
    line = f"model     {total / 1e12:,.2f} TFLOP a step, {total / mesh.size / 1e12:,.2f} a chip"
    if peak := throughput.peak_flops(mesh.devices.flat[0]):
        seconds = total / mesh.size / peak
        line += (
            f"; at the chips' peak {1e3 * seconds:,.1f} ms, at 40 % of it "
            f"{0.4 * config.batch_size / seconds:,.0f} images/s"
        )
    yield line


def _text(
    config: Any, data: inputs.Data, plan: Durations, program: Program, directory: pathlib.Path
) -> Iterator[str]:
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes)) / 1e9
    done = run_directory.complete_steps(directory)
    yield (
        f"steps     {plan.total}, of which {plan.warmup} warm-up; "
        f"{len(data.train) / config.batch_size:,.1f} an epoch"
    )
    yield f"every     log {plan.log}, checkpoint {plan.checkpoint} steps; evaluation: " + ", ".join(
        f"{name} {every or 'at the end'}" for name, every in plan.evaluate.items()
    )
    yield (
        f"writes to {directory}: config.json, metrics.jsonl, checkpoints/ ({size:.2f} GB each, the "
        f"newest {config.keep_checkpoints} kept), "
        + "".join(f"{name}/, " for name in ("tensorboard", "report") if config[name])
        + (f"profile/, {config.profile_steps} steps" if config.profile_steps else "no profile")
    )
    yield f"resumes   after step {done[-1]}" if done else "starts    from step 0"
    yield "dry run: nothing was written"
