"""The configuration of a run, made from the table of keys, and its checks before any work.

A config file's `get_config(arg)` starts from `default()`, sets values, and returns the ConfigDict.
`resolve` checks names and values against the table (`keys.KEYS`), so a misspelt key is an error
that names the nearest one, whether it was misspelt in a file or on the command line.
"""

import dataclasses
import difflib
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from crate_jax import checks, command_line, keys
from crate_jax.models import variants
from crate_jax.models.base import ImageModelConfig


def default() -> ml_collections.ConfigDict:
    """A ConfigDict with every key of `keys.KEYS`; `model` is CRATE-B/16, `data` is `scenes`.

    A duration is a number of steps (500 or "500 steps"), "5 epochs" or "48000 examples".
    """
    c = ml_collections.ConfigDict(type_safe=False)
    c.model = model("crate-b16")
    for key in keys.KEYS:
        section = c
        *sections, name = key.name.split(".")
        for part in sections:
            if part not in section:
                section[part] = ml_collections.ConfigDict(type_safe=False)
            section = section[part]
        section[name] = placeholder(key.check.kind) if key.default is None else key.default
    return c


def load(name: str, arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of `--config=configs/NAME.py:ARG`, from the files that come with the package.

    Args:
        name: of the file, without its suffix; RECIPE_VALUE stands for RECIPE.py:VALUE.
        arg: its argument, such as "images=20000"; None for its defaults.

    Raises:
        ValueError: where there is no such file; names the nearest.
    """
    found = command_line.recipe(name, arg)
    if found is None:
        choices("config", name, tuple(path.stem for path in command_line.packaged_configs()))
    return read(*found)


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


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked, frozen copy.

    Raises:
        ValueError: lists every unknown or missing key (with the nearest known one), every wrong
            value, and what does not fit together.
    """
    config = config.copy_and_resolve_references()
    family = config.get("model", {}).get("family", "crate")
    choices("model.family", family, tuple(variants.FAMILIES))
    if problems := list(_problems(config, family)):
        raise ValueError("config: " + "; ".join(problems))
    if (config.steps is None) == (config.epochs is None):
        raise ValueError(
            "config: expected exactly one of steps and epochs, got "
            f"steps={config.steps}, epochs={config.epochs}"
        )
    try:
        variants.from_dict(config.model.to_dict())
    except ValueError as error:
        raise ValueError(f"config: model.{error}") from error
    return ml_collections.FrozenConfigDict(config)


def _problems(config: ml_collections.ConfigDict, family: str) -> Iterator[str]:
    expected = {key.name: key.check for key in (*keys.KEYS, *keys.of_model(family))}
    sections = {name.rpartition(".")[0] for name in expected} | {"data"}
    values = dict(_nodes(config))
    for name, value in values.items():
        if name in sections and not hasattr(value, "items"):
            yield f"{name}: expected a section with keys, got {value!r}"
        elif name not in expected and name not in sections:
            yield f"unknown key {name}{_nearest_key(name, expected)}"
        elif name in expected and (problem := expected[name].problem(value)):
            yield f"{name}: {problem}"
    wrong = [name for name in sections if not hasattr(values.get(name, {}), "items")]
    for name in expected:
        if name not in values and not name.startswith(tuple(f"{section}." for section in wrong)):
            yield f"missing key {name}"


def _nodes(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every section and every value, by dotted name."""
    for key, value in config.items():
        yield prefix + key, value
        if hasattr(value, "items"):
            yield from _nodes(value, f"{prefix}{key}.")


def _nearest_key(name: str, known: Iterable[str]) -> str:
    section, _, last = name.rpartition(".")
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(last, [key.rpartition(".")[2] for key in siblings], 1, 0.5)
    if near:
        return f", did you mean {name.removesuffix(last)}{near[0]}?"
    return f" (known: {', '.join(siblings)})"


def duration(value: int | str, batch_size: int, examples: int) -> int:
    """Steps of a duration: a number of steps, or "5 epochs", "48000 examples", "500 steps".

    Rounded to whole steps; a positive duration is at least one step.

    Args:
        value: the duration.
        batch_size: examples a step.
        examples: examples an epoch.
    """
    parsed = checks.parse_duration(value)
    if parsed is None:
        raise ValueError(checks.DURATION.problem(value))
    amount, unit = parsed
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
    if not 1 <= total < 2**31:
        raise ValueError(f"steps: expected 1 to 2^31 - 1 steps in all, got {total}")
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
        raise ValueError(f"{name}: {checks.one_of(*allowed).problem(value)}")


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


def flatten(config: Any) -> dict[str, Any]:
    """{"optimizer.name": "lion", ...}."""
    return {name: value for name, value in _nodes(config) if not hasattr(value, "items")}


def differences(old: Any, new: Any) -> list[str]:
    """Lines "key: old -> new" for the keys that make two configs different runs."""
    old, new = flatten(plain(old)), flatten(plain(new))
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key, absent) != new.get(key, absent) and key not in keys.FREE
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
