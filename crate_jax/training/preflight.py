"""The dry run: everything that a run will need is tried, before hours are spent on it."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from crate_jax.config import Durations
from crate_jax.convert import run_directory
from crate_jax.training import evaluation, inputs, sharding
from crate_jax.training.console import say
from crate_jax.training.inputs import Data


def check(
    setting: evaluation.Setting,
    plan: Durations,
    train_step: Callable,
    template: tuple[Any, Any],
    evals: evaluation.Evaluation,
    directory: pathlib.Path,
) -> None:
    """Lists the parameters, reads a batch of each split, compiles, says what will happen.

    Nothing is trained and nothing written.

    Args:
        setting: of the run.
        plan: its durations.
        train_step: jitted (parameters, training state, batch).
        template: shapes and shardings of parameters and training state.
        evals: its evaluators.
        directory: the workdir.
    """
    say(parameter_overview.get_parameter_overview(template[0], include_stats=False))
    split = sharding.batch_sharding(setting.mesh)
    data = setting.data
    with data.batches() as batches:
        batch = next(batches)
    say(f"read      a training batch of {_shape(batch['image'])}")
    step = train_step.lower(
        *template, sharding.put_batch(inputs.pixels_and_labels(batch), split)
    ).compile()
    held_out = next(data.once("val", setting.batch_size))
    say(f"read      a held-out batch of {_shape(held_out['image'])}")
    evals.compile(template[0], held_out)
    say("compiled  the training step and the evaluation")
    say(_text(setting.config, data, plan, step, template, directory))


def _shape(array: Any) -> str:
    return " x ".join(str(side) for side in array.shape)


def _text(
    config: ml_collections.ConfigDict,
    data: Data,
    plan: Durations,
    step: jax.stages.Compiled,
    template: tuple[Any, Any],
    directory: pathlib.Path,
) -> str:
    lines = [
        f"steps     {plan.total}, of which {plan.warmup} warm-up; "
        f"{len(data.train) / config.batch_size:,.1f} an epoch"
    ]
    memory = step.memory_analysis()
    if memory is not None:
        held, work = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        lines.append(
            f"memory    {(held + work) / 2**30:.2f} GiB a device: {held / 2**30:.2f} state and "
            f"batch, {work / 2**30:.2f} at work{_capacity()}"
        )
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(template)) / 1e9
    done = run_directory.complete_steps(directory)
    lines += [
        f"every     log {plan.log}, checkpoint {plan.checkpoint} steps; evaluation: "
        + ", ".join(f"{name} {every or 'at the end'}" for name, every in plan.evaluate.items()),
        f"writes to {directory}: config.json, metrics.jsonl, checkpoints/ ({size:.2f} GB each, the "
        f"newest {config.keep_checkpoints} kept), "
        + "".join(f"{name}/, " for name in ("tensorboard", "report") if config[name])
        + (f"profile/, {config.profile_steps} steps" if config.profile_steps else "no profile"),
        f"resumes   after step {done[-1]}" if done else "starts    from step 0",
        "dry run: nothing was written",
    ]
    return "\n".join(lines)


def _capacity() -> str:
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return f", of {limit / 2**30:.1f} that it has" if limit else ""
