"""The training loop, read from top to bottom, and evaluation alone.

A run is a function of its config: randomness comes from (seed, step), the input is random-access,
and what is averaged between two log lines is part of the saved state. So a run that was stopped,
however it was, and started again ends with the same metrics as one that was not.
"""

import collections
import contextlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from crate_jax.config import differences, durations, plain, resolve
from crate_jax.convert import run_directory
from crate_jax.models import base, variants
from crate_jax.progress import duration_text
from crate_jax.training import (
    budget,
    checkpoint,
    compilation,
    console,
    distributed,
    evaluation,
    evaluators,
    inputs,
    metrics,
    optim,
    preflight,
    pretrained,
    program,
    sharding,
    throughput,
    workdir,
)
from crate_jax.training.console import say
from crate_jax.training.step import (
    flops_per_image,
    read_sums,
    reset_sums,
)
from crate_jax.training.stop import StopSignal


@distributed.raising_process_lost()
def train(
    config: ml_collections.ConfigDict,
    directory: str | pathlib.Path,
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """Trains to the end, or until a signal; resumes where the directory holds checkpoints.

    Args:
        config: from a config file; `crate_jax.config.default` has every key with its meaning.
        directory: the run's workdir, the same for all processes. Written there: config.json,
            metrics.jsonl, checkpoints/, tensorboard/, report/index.html.
        devices: to train on; None for all. A dry run takes those of `topology.devices` too.

    Returns:
        The exit status: 0 when finished, or stopped by SIGTERM or SIGHUP and saved; 130 after
        Ctrl-C.

    Raises:
        ValueError: for anything wrong with the config, the data or the workdir, before any work.
        FloatingPointError: where the loss or a gradient is not finite.
        checkpoint.CheckpointError: where a checkpoint cannot be written or read.
        distributed.ProcessFailed: where another process of the run failed or has another config;
            ProcessLost where one is gone.
        OSError: where files cannot be written.
    """
    with contextlib.ExitStack() as opened:
        return _train(config, directory, devices, opened)


def _train(
    config: ml_collections.ConfigDict,
    directory: str | pathlib.Path,
    devices: Sequence[jax.Device] | None,
    opened: contextlib.ExitStack,
) -> int:
    started = time.monotonic()

    # ---- Configuration and devices --------------------------------------------------------------
    config = resolve(config)
    kept = compilation.keep_programs(config.compilation_cache, config.compilation_cache_gib)
    say(f"programs  {kept}")
    mesh = sharding.make_mesh(config.fsdp, devices)
    sharding.check_batch("batch_size", config.batch_size, mesh, config.accumulate)
    say(console.device_line(mesh))
    model_config = variants.from_dict(config.model.to_dict())
    budget.check(config, model_config, mesh)

    # ---- Data: opened and checked before anything is compiled -----------------------------------
    directory = pathlib.Path(os.path.expanduser(directory)).absolute()
    with distributed.together("opening the data"):
        data = inputs.open_data(config, model_config)
        fresh = config.init_from and not run_directory.complete_steps(directory)
        weights = pretrained.read(config.init_from, model_config) if fresh else {}
        metrics.check_wandb(config.wandb)
    distributed.check_equal(
        config=plain(config),
        training_images=len(data.train),
        held_out_images=len(data.val),
        classes=data.train.class_names,
    )
    plan = durations(config, len(data.train))
    say(inputs.data_line(data, plan, config.batch_size))
    say(budget.loader_line(config, len(data.val), mesh))

    # ---- Model and optimizer: shapes first ------------------------------------------------------
    rate = optim.schedule(config.optimizer, plan.warmup, plan.total)
    made = program.make(config, model_config, mesh, rate)
    init, seed_key = made.init, jax.random.key(config.seed)
    split = sharding.batch_sharding(mesh)
    flops = flops_per_image(config, model_config)
    say(console.model_line(model_config, made.shapes[0], flops, config.dtype))
    say(f"attention {made.attention.backend}: {made.attention.why}")
    setting = evaluation.Setting(config, made.definition, data, mesh, lambda: init(seed_key)[0])
    evals = evaluators.make(setting, plan)

    # ---- Workdir, and resumption: newest whole checkpoint, then input position, then metrics -----
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.shapes))
    needed_bytes = 2 * state_bytes + 2**24
    if config.dry_run:
        workdir.check(directory, config, needed_bytes)
        preflight.check(setting, plan, made, evals, directory, flops)
        return 0
    writer = jax.process_index() == 0
    with distributed.together("opening the workdir"):
        if writer:
            lock = opened.enter_context(workdir.claim(directory, config, needed_bytes))
    checkpoints = checkpoint.Checkpoints(directory, config.keep_checkpoints, plan.keep)
    batches = data.batches()
    restored = checkpoints.restore_latest(*made.shapes)
    if restored is None:
        start, (params, training) = 0, init(seed_key)
        params = pretrained.replace(params, weights)
    else:
        start, params, training = restored.step, restored.params, restored.training
        batches.set_state(restored.input)
        say(f"resumed  after step {start} of {plan.total}")
    metrics_file = metrics.MetricsFile(directory / "metrics.jsonl", start, writer)
    if restored is not None and writer:
        metrics_file.expect(restored.metadata.get("lines", 0))
    boards = (
        metrics.TensorBoard(directory / "tensorboard", start, writer and config.tensorboard),
        metrics.WeightsAndBiases(config.wandb, directory, plain(config), writer),
    )
    profile = throughput.Profile(directory / "profile", config.profile_steps, start, plan.total)

    def record(step: int, values: dict[str, Any]) -> None:
        try:
            metrics_file.write(step, values)
            shown = {name: value for name, value in values.items() if metrics.is_charted(name)}
            for board in boards:
                board.write(step, shown)
        except OSError as error:
            raise OSError(
                f"{error}; {checkpoints.last_good()}. Free space or fix the permissions, then run "
                "the same command again to resume"
            ) from error

    def evaluate_now(step: int, names: list[str], params: Any) -> None:
        try:
            values = evals.run(names, params, stop.within_step)
        except evaluation.Interrupted:
            say(console.interrupted_line(step, stop.name))
            return
        inputs.list_skipped_held_out(evals.skipped, data.val, directory)
        record(step, values | evals.seconds)
        say(console.evaluation_line(step, values))

    def save(step: int, params: Any, training: Any) -> None:
        check_finite(training)
        if writer:
            lock.check()
        metrics_file.sync()
        inputs.share_skipped(batches, data.train)
        metadata = {
            "step": step,
            "class_names": list(data.train.class_names),
            "lines": len(metrics_file.lines),
        }
        checkpoints.save(step, params, training, batches.get_state(), metadata)

    def settle(step: int, params: Any, training: Any) -> None:
        if not checkpoints.wait():
            save(step, params, training)
            checkpoints.wait()

    def check_finite(training: Any) -> None:
        bad = int(training["bad_step"])
        if bad >= 0:
            checkpoints.wait()
            raise FloatingPointError(_not_finite(bad, recent, directory, checkpoints.last_good()))
        recent.clear()

    def due(step: int, every: int) -> bool:
        return step == plan.total or (every > 0 and step % every == 0)

    # ---- Loop -----------------------------------------------------------------------------------
    recent: collections.deque = collections.deque()  # (step, indices) not yet known to be finite
    peak = throughput.peak_flops(mesh.devices.flat[0])
    watch = throughput.Stopwatch(start, plan.total, config.batch_size, flops, peak, mesh.size)
    for resource in (checkpoints, *boards, metrics_file, batches, profile):
        opened.callback(resource.close)
    stop = opened.enter_context(StopSignal())
    opened.enter_context(distributed.raising_process_lost(checkpoints.abandon))
    # Stopped between a step and its evaluation: that is made up for first.
    if not distributed.all_true(evals.done(start, metrics_file)):
        evaluate_now(start, evals.due(start), params)
        if stop.within_step():
            return stop.status
    for step in range(start + 1, plan.total + 1):
        with watch.waiting():
            batch = next(batches)
        recent.append((step, batch["index"]))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            batch = sharding.put_batch(inputs.pixels_and_labels(batch), split)
            # Nothing but the batch goes to the devices. Not guarded itself: among several
            # processes JAX puts its parts there by transfers that count as implicit.
            with jax.transfer_guard("disallow"):
                params, training = made.step(params, training, batch)
        if step == start + 1:
            with watch.pause("compile"):
                jax.block_until_ready(params)
        if profile.after(step, training):
            say(f"profile  {profile.directory}")
        stopping = stop.requested(step)
        if due(step, plan.log):
            # The one place where the host waits for the device.
            values = read_sums(training) | {"train/learning_rate": rate(step - 1)}
            check_finite(training)
            training = reset_sums(training)
            values |= watch.lap(step)
            values |= inputs.list_skipped(batches, data.train, directory)
            record(step, values)
            say(console.progress_line(step, plan.total, values, watch.eta()))
            checkpoints.poll()
        # Before the evaluation, which may take longer than a preemption leaves.
        saved = stopping or due(step, plan.checkpoint)
        if saved:
            with watch.pause("checkpoint"):
                save(step, params, training)
        if (names := evals.due(step)) and not stopping:
            check_finite(training)
            with watch.pause("evaluation"):
                evaluate_now(step, names, params)
            stopping = stop.within_step()
        if stopping:
            if not saved:
                save(step, params, training)
            settle(step, params, training)
            say(f"{stop.name}: saved step {step}; run the same command again to resume")
            return stop.status
    settle(plan.total, params, training)

    # ---- Report ---------------------------------------------------------------------------------
    console.print_evaluation(evals.latest(metrics_file), config.evaluation.keep)
    if config.report:
        params = sharding.whole_tree(params, mesh)
        if writer:
            _report(directory, config, data, made.definition, params, metrics_file.lines)
    say(f"done in {duration_text(time.monotonic() - started)}, results in {directory}")
    return 0


@distributed.raising_process_lost()
def evaluate(config: ml_collections.ConfigDict, directory: str | pathlib.Path) -> int:
    """Evaluates the newest checkpoint of a run, and writes eval.json and the report again.

    Args:
        config: the run's own config; data and evaluation may differ from it (another split of
            difficulty, say), the model may not.
        directory: the run's workdir; metrics.jsonl is left as it is.

    Returns:
        The exit status 0.

    Raises:
        ValueError: where the config's model is not the run's, or there is no whole checkpoint.
        distributed.ProcessFailed: where another process of the run failed.
    """
    config = resolve(config)
    compilation.keep_programs(config.compilation_cache, config.compilation_cache_gib)
    mesh = sharding.make_mesh(config.fsdp)
    directory = pathlib.Path(os.path.expanduser(directory)).absolute()
    model_config = variants.from_dict(config.model.to_dict())
    budget.check(config, model_config, mesh)
    with distributed.together("opening the data and the workdir"):
        data = inputs.open_data(config, model_config)
        whole, saved, step = run_directory.read(directory)
        if changes := differences(saved.to_dict(), model_config.to_dict()):
            raise ValueError(
                f"workdir {directory}: holds another model than the config (there -> here):\n  "
                + "\n  ".join(changes)
            )
    distributed.check_equal(config=plain(config), held_out_images=len(data.val), step=step)
    say(budget.loader_line(config, len(data.val), mesh, training=False))
    attention = program.choose_attention(config, model_config, mesh)
    computation = program.computation(config, attention, mesh)
    definition, _ = base.split(variants.abstract(model_config, **computation))
    shardings = sharding.state_shardings(mesh, whole)

    def init(key):
        return base.split(variants.build(model_config, key))[1]

    # Born sharded, as in training: the same random network, on all processes.
    random = jax.jit(init, out_shardings=shardings)
    setting = evaluation.Setting(
        config, definition, data, mesh, lambda: random(jax.random.key(config.seed))
    )
    evals = evaluators.make(setting, durations(config, len(data.train)))
    values = evals.run(list(evals.evaluators), sharding.put_tree(whole, shardings))
    say(f"evaluated step {step}")
    console.print_evaluation(values, config.evaluation.keep)
    if jax.process_index() == 0:
        workdir.write_json(directory / "eval.json", {"step": step} | values)
        if config.report:
            lines = metrics.read(directory / "metrics.jsonl")
            lines = [line for line in lines if line["step"] <= step]
            lines.append({"step": step} | values)
            _report(directory, config, data, definition, whole, lines)
    return 0


def _report(*args) -> None:
    # Drawing takes as long to import as everything else: only a run that draws pays for it.
    from crate_jax.training import report

    say(f"report   {report.write(*args)}")


def _not_finite(
    bad: int, recent: collections.deque, directory: pathlib.Path, last_good: str
) -> str:
    """Writes which batch it was to nonfinite.json, and says what to do."""
    indices = next((indices.tolist() for step, indices in recent if step == bad), None)
    record = {"step": bad, "indices": indices}
    path = directory / f"nonfinite_{jax.process_index()}.json"
    workdir.write_json(path, record)
    return (
        f"the loss or its gradient was not finite at step {bad}; {last_good}. The indices of that "
        f"step's examples are in {path}. Look at them, or train in a new workdir with a lower "
        "optimizer.learning_rate, a longer optimizer.warmup or optimizer.clip_norm=1.0"
    )
