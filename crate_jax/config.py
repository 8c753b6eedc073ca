"""The configuration: every key with its meaning, and the checks that come before any work.

A config file's `get_config(arg)` starts from `default()`, sets values, and returns the ConfigDict.
`resolve` checks names and types against `default()`, so a misspelt key is an error that names the
nearest one, whether it was misspelt in a file or on the command line.
"""

import dataclasses
import difflib
import importlib.util
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from crate_jax import command_line, data
from crate_jax.models import variants
from crate_jax.models.base import ImageModelConfig


def default() -> ml_collections.ConfigDict:
    """A ConfigDict with every key of a run; `model` is CRATE-B/16, `data` is `scenes`.

    A duration is a number of steps (500 or "500 steps"), "5 epochs" or "48000 examples".
    """
    c = ml_collections.ConfigDict(type_safe=False)
    c.seed = 0
    c.steps = placeholder(int)  # length of the run; exactly one of steps and epochs
    c.epochs = placeholder(float)
    c.batch_size = 256  # over all devices and processes
    c.accumulate = 1  # parts that a batch is computed in, one after the other
    c.dtype = "float32"  # of the computation: float32 or bfloat16; parameters stay float32
    c.remat = "none"  # what the backward pass recomputes: none, dots (not matrix products), full
    c.fsdp = 1  # devices that parameters and optimizer state are split over
    c.label_smoothing = 0.0
    c.mixup = 0.0  # alpha of its Beta distribution; 0: off
    c.cutmix = 0.0  # likewise
    c.mixup_switch = 0.5  # where both are on, the probability that a batch gets cutmix
    c.init_from = ""  # fine-tuning: a run's directory or a checkpoint file, taken without its head
    c.log_every = "50 steps"  # this and the next two are durations
    c.evaluate_every = "1 epochs"  # 0: at the end only, which is always evaluated and saved
    c.checkpoint_every = "1 epochs"  # likewise
    c.keep_checkpoints = 3  # the newest so many
    c.keep_every = "0 steps"  # besides these, every multiple of this duration; 0: none
    c.tensorboard = True
    c.wandb = ""  # project on Weights & Biases to which figures go too (extra: wandb)
    c.profile_steps = 0  # steps after the tenth to trace into profile/, for TensorBoard; 0: none
    c.report = True  # write report/index.html at the end
    c.dry_run = False  # check everything, compile, print what would happen, stop
    c.model = model("crate-b16")
    c.data = ml_collections.ConfigDict(data.default_config())

    c.optimizer = ml_collections.ConfigDict(type_safe=False)
    c.optimizer.name = "adamw"  # adamw or lion
    c.optimizer.learning_rate = 1e-3  # peak
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.05  # decoupled, times the learning rate
    c.optimizer.decay_mask = "all"  # all parameters, or only those called kernel
    c.optimizer.clip_norm = 0.0  # of the global gradient; 0: no clipping
    c.optimizer.schedule = "cosine"  # cosine or constant
    c.optimizer.warmup = "0 steps"  # duration
    c.optimizer.end_factor = 0.0  # cosine ends at this part of the peak

    # When each evaluator runs: a duration, "" for evaluate_every, 0 for the end only, or "never".
    c.evals = ml_collections.ConfigDict(type_safe=False)
    c.evals.validation = ""  # loss, top-1, top-5
    c.evals.emergence = ""  # [CLS] attention against masks; coding rate and sparsity of the layers
    c.evals.knn = "never"  # nearest neighbours of frozen features
    c.evals.probe = "never"  # linear probe of frozen features
    c.evals.maskcut = "never"  # average precision of MaskCut's masks, where the data has masks

    c.evaluation = ml_collections.ConfigDict(type_safe=False)
    c.evaluation.batch_size = 256
    c.evaluation.cls_iou = True  # score [CLS] attention where the data has masks
    c.evaluation.capture_images = 2000  # held-out images on which the layers are measured; 0: none
    c.evaluation.keep = 0.6  # of mass or area, by which the rules threshold a map
    c.evaluation.report_images = 12  # held-out images shown in the report
    return c


def load(name: str, arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of `--config=configs/NAME.py:ARG`, from the files that come with the package.

    Args:
        name: of the file, without its suffix.
        arg: its argument, such as "images=20000"; None for its defaults.

    Raises:
        ValueError: where there is no such file; names the nearest.
    """
    files = {path.stem: path for path in command_line.packaged_configs()}
    choices("config", name, tuple(files))
    return read(files[name], arg)


def read(path: str | pathlib.Path, arg: str | None = None) -> ml_collections.ConfigDict:
    """What `get_config(arg)` of a config file returns."""
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def model(name: str, **overrides: Any) -> ml_collections.ConfigDict:
    """`config.model` for a named size: all fields of its config, some replaced.

    head_dim stays open (None: dim / heads) unless it is given, so that `heads` can be overridden.
    """
    section = model_section(variants.config(name, **overrides))
    if "head_dim" not in overrides:
        section.head_dim = placeholder(int)
    return section


def model_section(network: ImageModelConfig) -> ml_collections.ConfigDict:
    """`config.model` for a network that there is, such as `crate_jax.load(PATH).config`."""
    values = network.to_dict()
    section = ml_collections.ConfigDict(values, type_safe=False)
    for field, value in values.items():
        if value is None:
            section[field] = placeholder(int)
    return section


# Keys that a resumed run may change: they alter no number that is trained or reported.
MAY_CHANGE = (
    "dry_run",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "tensorboard",
    "wandb",
    "profile_steps",
    "report",
    "data.workers",
    "fsdp",
    "remat",
)

_AT_LEAST_0 = lambda x: 0 <= x < math.inf, "at least 0"  # what is not a number never is
_SHARE = lambda x: 0 <= x <= 1, "0 to 1"
_BELOW_1 = lambda x: 0 <= x < 1, "at least 0 and below 1"
# Numbers that nothing else checks before they are used, which may be hours into a run or never.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "seed": (lambda x: 0 <= x < 2**63, "0 to 2^63 - 1"),
    "accumulate": (lambda x: x >= 1, "at least 1"),
    "label_smoothing": _BELOW_1,
    "mixup": _AT_LEAST_0,
    "cutmix": _AT_LEAST_0,
    "mixup_switch": _SHARE,
    "data.max_megapixels": (lambda x: x > 0, "above 0"),
    "optimizer.learning_rate": _AT_LEAST_0,
    "optimizer.b1": _BELOW_1,
    "optimizer.b2": _BELOW_1,
    "optimizer.weight_decay": _AT_LEAST_0,
    "optimizer.clip_norm": _AT_LEAST_0,
    "optimizer.end_factor": _SHARE,
    "evaluation.capture_images": _AT_LEAST_0,
    "evaluation.keep": _SHARE,
    "evaluation.report_images": _AT_LEAST_0,
}


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked, frozen copy.

    Raises:
        ValueError: lists every unknown or missing key (with the nearest known one) and every value
            of a wrong type, or every number out of its range.
    """
    config = config.copy_and_resolve_references()
    reference = default()
    family = config.get("model", {}).get("family", "crate")
    choices("model.family", family, tuple(variants.FAMILIES))
    reference.model = model(next(n for n, v in variants.VARIANTS.items() if v.family == family))
    problems = list(_problems(config, reference))
    if problems:
        raise ValueError("config: " + "; ".join(problems))
    if (config.steps is None) == (config.epochs is None):
        raise ValueError(
            "config: expected exactly one of steps and epochs, got "
            f"steps={config.steps}, epochs={config.epochs}"
        )
    choices("dtype", config.dtype, ("float32", "bfloat16"))
    flat = flatten(config)
    outside = [
        f"{key}: expected {text}, got {flat[key]!r}"
        for key, (holds, text) in _RANGES.items()
        if not holds(flat[key])
    ]
    if outside:
        raise ValueError("config: " + "; ".join(outside))
    return ml_collections.FrozenConfigDict(config)


def _problems(config: Any, reference: Any, prefix: str = "") -> Iterator[str]:
    known = list(reference.keys())
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f", did you mean {prefix}{near[0]}?" if near else f" (known: {', '.join(known)})"
            yield f"unknown key {prefix}{key}{hint}"
    for key in known:
        if key not in config:
            yield f"missing key {prefix}{key}"
            continue
        got, expected = config[key], reference[key]
        if isinstance(expected, ml_collections.ConfigDict):
            if not isinstance(got, ml_collections.ConfigDict):
                yield f"{prefix}{key}: expected a section with keys, got {got!r}"
            else:
                yield from _problems(got, expected, f"{prefix}{key}.")
        elif message := (
            _period_problem(got)
            if prefix == "evals."
            else _type_problem(key, got, expected, reference.get_type(key))
        ):
            yield f"{prefix}{key}: {message}"


def _type_problem(key: str, got: Any, expected: Any, kind: type) -> str | None:
    if expected is None and got is None:
        return None
    if isinstance(expected, str) and _DURATION.fullmatch(expected):
        try:
            duration(got, 1, 1)
        except ValueError as error:
            return str(error)
        return None
    if kind is float and isinstance(got, int) and not isinstance(got, bool):
        return None
    if kind in (tuple, list) and isinstance(got, tuple | list):
        return None
    if key == "image_size" and isinstance(got, int):
        return None
    if not isinstance(got, kind) or (kind is int and isinstance(got, bool)):
        return f"expected {kind.__name__}, got {got!r}"
    return None


def _period_problem(got: Any) -> str | None:
    if got in ("", "never"):
        return None
    try:
        duration(got, 1, 1)
    except ValueError as error:
        return f'{error}; or "" for evaluate_every, or "never"'
    return None


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?)?\s*")


def duration(value: int | str, batch_size: int, examples: int) -> int:
    """Steps of a duration: a number of steps, or "5 epochs", "48000 examples", "500 steps".

    Rounded to whole steps; a positive duration is at least one step.

    Args:
        value: the duration.
        batch_size: examples a step.
        examples: examples an epoch.
    """
    match = _DURATION.fullmatch(str(value))
    if isinstance(value, bool) or match is None:
        raise ValueError(
            'expected a duration such as 500, "500 steps", "5 epochs" or "48000 examples", '
            f"got {value!r}"
        )
    amount, unit = float(match[1]), (match[2] or "steps").rstrip("s")
    steps = {
        "step": amount,
        "epoch": amount * examples / batch_size,
        "example": amount / batch_size,
    }[unit]
    return max(1, round(steps)) if steps > 0 else 0


@dataclasses.dataclass(frozen=True)
class Durations:
    """The durations of a run, in steps.

    `evaluate` has the period of each evaluator that is to run, 0 for at the end only.
    """

    total: int
    warmup: int
    log: int
    evaluate: dict[str, int]
    checkpoint: int
    keep: int


def durations(config: ml_collections.ConfigDict, examples: int) -> Durations:
    """Every duration of `config` in steps, for a training set of so many examples."""

    def steps(value):
        return duration(value, config.batch_size, examples)

    total = config.steps if config.steps is not None else steps(f"{config.epochs} epochs")
    if total < 1:
        raise ValueError(f"steps: expected at least one step, got {total}")
    return Durations(
        total=total,
        warmup=steps(config.optimizer.warmup),
        log=max(1, steps(config.log_every)),
        evaluate={
            name: steps(config.evaluate_every if period == "" else period)
            for name, period in config.evals.items()
            if period != "never"
        },
        checkpoint=steps(config.checkpoint_every),
        keep=steps(config.keep_every),
    )


def choices(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of those allowed; names the nearest."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}{hint}")


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON has it: sections as dictionaries, tuples as lists."""
    return {
        key: plain(value)
        if hasattr(value, "items")
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in config.items()
    }


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optimizer.name": "lion", ...}."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Any, new: Any) -> list[str]:
    """Lines "key: old -> new" for the keys that make two configs different runs."""
    old, new = flatten(plain(old)), flatten(plain(new))
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key, absent) != new.get(key, absent) and key not in MAY_CHANGE
    ]


_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def arguments(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The argument of a config file, `FILE.py:key=value,key=value`, read by its defaults' types.

    Args:
        arg: the text after the colon; None or "" for all defaults. One value without a key belongs
            to the first default.
        **defaults: every argument that the file knows, with its default.

    Raises:
        ValueError: for an unknown key (names the nearest) or a value of another type.
    """
    values = ml_collections.ConfigDict(defaults)
    for number, part in enumerate(filter(None, (arg or "").split(","))):
        key, separator, text = part.partition("=")
        if not defaults:
            raise ValueError(f"config argument: this file takes none, got {part!r}")
        if not separator and number == 0:
            key, text = next(iter(defaults)), part
        choices("config argument", key, tuple(defaults))
        kind = type(defaults[key])
        try:
            values[key] = _TRUTH[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ValueError(
                f"config argument {key}: expected {kind.__name__}, got {text!r}"
            ) from None
    return values
