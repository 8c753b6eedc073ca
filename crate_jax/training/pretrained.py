"""Fine-tuning: a run that starts from the weights of another network of the same layers."""

import dataclasses
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np

from crate_jax.convert import checkpoints, names
from crate_jax.models import base, variants
from crate_jax.models.base import ImageModelConfig
from crate_jax.models.positions import resize_positions

# The head is always replaced, with its norm, as in the public fine-tuning code of 2306.01129.
HEAD = ("head_norm", "head_hidden", "head")
# Fields that may differ between the two networks: of the head, of the input, and of training.
MAY_DIFFER = (
    *("classes", "head_hidden", "head_epsilon", "pool", "norm_before_pool"),
    *("image_size", "positions", "mean", "std", "mask_ratio"),
)


def read(path: str, config: ImageModelConfig) -> dict[str, np.ndarray]:
    """The weights of a checkpoint for a network of `config`, all but the head, by our paths.

    Position embeddings, where there are any, are resampled to the network's grid of patches by its
    rule `positions`.

    Args:
        path: a run's directory, or a file that `crate_jax.load` reads; what the file does not tell
            (heads, lambda, epsilon, the sides of its grid, ...) is taken from `config`.
        config: of the network to be trained.

    Raises:
        ValueError: where the two networks differ in more than head and image size (lists all), and
            what `crate_jax.load` raises.
        FileNotFoundError: where there is nothing at the path.
    """
    source = pathlib.Path(os.path.expanduser(path))
    if not source.exists():
        raise FileNotFoundError(f"init_from: expected a run's directory or a file, found no {path}")
    assumed = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    found = checkpoints.read(source, assumed, drop_head=True)
    for warning in found.warnings:
        logging.warning("%s: %s", found.source, warning)
    problems = [
        f"{name}: {getattr(found.config, name, None)!r} there, {value!r} here (the first is "
        f"{found.origin.get(name, 'inferred from shapes')})"
        for name, value in assumed.items()
        if name not in MAY_DIFFER and getattr(found.config, name, None) != value
    ]
    if found.config.family != config.family:
        problems = [f"family: {found.config.family} there, {config.family} here"]
    if problems:
        raise ValueError(
            f"init_from {path}: expected a network with the same layers; "
            + "; ".join(problems)
            + ". Set config.model accordingly, or write a file that declares what is meant: "
            "python -m crate_jax.convert --source=... --target=....safetensors"
        )
    weights = {name: np.asarray(value, np.float32) for name, value in found.params.items()}
    if "positions" in weights:
        weights["positions"] = np.asarray(
            resize_positions(weights["positions"], found.config.grid, config.grid, config.positions)
        )
    _check_shapes(path, weights, config)
    return weights


def _check_shapes(path: str, weights: dict[str, np.ndarray], config: ImageModelConfig) -> None:
    shapes = {
        name: leaf.shape
        for name, leaf in names.flatten(base.split(variants.abstract(config))[1])
        if name.split("/")[0] not in HEAD
    }
    got = {name: value.shape for name, value in weights.items()}
    if got != shapes:
        odd = sorted(name for name in set(got) | set(shapes) if got.get(name) != shapes.get(name))
        raise ValueError(
            f"init_from {path}: expected the arrays of this network; other or absent there: "
            + ", ".join(f"{name} {got.get(name)} for {shapes.get(name)}" for name in odd[:5])
        )


def replace(params: Any, weights: dict[str, np.ndarray]) -> Any:
    """Parameters with those in `weights` in their place, each laid out over devices as before."""
    flat = dict(names.flatten(params))
    for name, value in weights.items():
        place = flat[name].sharding
        flat[name] = jax.make_array_from_callback(value.shape, place, lambda i, v=value: v[i])
    return names.unflatten(flat)
