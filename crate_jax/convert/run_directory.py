"""The directory of a run, read: its network's config and the parameters of a whole checkpoint.

Below training, which writes these directories, so that reading one needs no training at all.
Layout: WORKDIR/config.json and WORKDIR/checkpoints/STEP/{params,training,input,metadata}, with the
SHA-256 of every file of a step in its `manifest.json`.
"""

import hashlib
import logging
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from crate_jax import files
from crate_jax.models import base, variants
from crate_jax.models.base import ImageModelConfig

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"
ITEMS = ("params", "training", "input", "metadata")


def read(workdir: str | os.PathLike, step: int | None = None) -> tuple[Any, ImageModelConfig, int]:
    """The parameters of a run's checkpoint on the default device, and what they belong to.

    Args:
        workdir: a run's directory, with config.json and checkpoints/.
        step: the step wanted; None for the newest that is whole.

    Returns:
        (parameters as a pure dictionary, the network's config, the step).

    Raises:
        ValueError: where this is no run's directory, or the step is not there, or is damaged.
    """
    workdir = pathlib.Path(workdir).absolute()
    steps = complete_steps(workdir)
    if not (workdir / CONFIG).is_file() or not steps:
        lacking = "checkpoints/STEP" if (workdir / CONFIG).is_file() else CONFIG
        raise ValueError(
            f"{workdir}: expected a run's directory with {CONFIG} and checkpoints/STEP, found "
            f"no {lacking}; give the workdir of a finished or running training"
        )
    if step is not None and step not in steps:
        raise ValueError(f"{workdir}: expected one of the steps {steps}, got {step}")
    config = read_config(workdir)
    problems = []
    for candidate in [step] if step is not None else reversed(steps):
        directory = workdir / "checkpoints" / str(candidate)
        problem = damage(directory)
        if problem is None:
            try:
                return _restore(directory / "params", config), config, candidate
            except Exception as error:  # Orbax raises whatever its storage layers raise
                problem = (
                    f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
                )
        problems.append(f"step {candidate}: {problem}")
        logging.warning("checkpoint %s", problems[-1])
    raise ValueError(f"{workdir}: no whole checkpoint: {'; '.join(problems)}")


def read_config(workdir: pathlib.Path) -> ImageModelConfig:
    """The network's config in a run's config.json.

    Raises:
        ValueError: where that file is something else, in one line.
    """
    path = workdir / CONFIG
    try:
        values = files.read_json(path)["model"]
        return variants.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f'{path}: expected the config of a run with its "model", got something else '
            f"({type(error).__name__}: {reason[:200]}); restore it from a backup"
        ) from error


def record(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """What is worth keeping of a run, plain enough for JSON: a few hundred kilobytes at most.

    Returns:
        `config`, nested; `step`; `history`, of metrics.jsonl up to the step a hundred lines of
        training and all evaluations, without intervals; `scores`, the last value of every held-out
        metric, intervals too. Numbers have six digits.

    Raises:
        ValueError: where the directory holds no metrics.
    """
    workdir = pathlib.Path(workdir)
    try:
        lines = files.read_metrics(workdir / METRICS)
    except FileNotFoundError as error:
        raise ValueError(
            f"{workdir}: expected the metrics of a run, found no {METRICS}; give the workdir of a "
            "training"
        ) from error
    lines = [_short(line) for line in lines if line["step"] <= step]
    scores: dict[str, Any] = {}
    for line in lines:
        scores |= {name: value for name, value in line.items() if name.startswith("val/")}
    trained = [line for line in lines if "train/loss" in line]
    kept = {id(line) for line in [*trained[:: max(1, len(trained) // 100)], *trained[-1:]]}
    history = [
        {name: value for name, value in line.items() if not name.endswith(("/low", "/high"))}
        for line in lines
        if id(line) in kept or any(name.startswith("val/") for name in line)
    ]
    config = files.read_json(workdir / CONFIG)
    return {"config": config, "step": step, "history": history, "scores": scores}


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in line.items()
    }


def _restore(directory: pathlib.Path, config: ImageModelConfig) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        base.split(variants.abstract(config))[1],
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory, template)


def complete_steps(workdir: str | os.PathLike) -> list[int]:
    """Steps whose directory stands under its final name, oldest first."""
    directory = pathlib.Path(workdir) / "checkpoints"
    if not directory.is_dir():
        return []
    # Not "08", nor digits of other scripts: their folders would not be found again.
    steps = [p.name for p in directory.iterdir() if p.is_dir() and p.name.isdecimal()]
    return sorted(int(name) for name in steps if str(int(name)) == name)


def damage(directory: pathlib.Path) -> str | None:
    """What a step's manifest says is wrong with it; None where it is whole or has no manifest.

    A step without one was complete when its process was killed before it could be sealed.
    """
    missing = [item for item in ITEMS if not (directory / item).is_dir()]
    if missing:
        return f"missing {', '.join(missing)}"
    manifest = directory / MANIFEST
    if not manifest.exists():
        return None
    try:
        sums = dict(files.read_json(manifest))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, expected in sums.items():
        if not (directory / name).is_file():
            return f"missing {name}"
        if checksum(directory / name) != expected:
            return f"{name} does not have the SHA-256 that was saved"
    return None


def checksum(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
