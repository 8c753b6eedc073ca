"""Between a file's tensors and a network's parameters; every problem is collected first."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from crate_jax.convert import names
from crate_jax.convert.layouts import Layout
from crate_jax.convert.text import listed
from crate_jax.models import base, variants
from crate_jax.models.base import ImageModelConfig, Transformer

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@functools.lru_cache(maxsize=8)
def _abstract(config: ImageModelConfig, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, Any]:
    """Definition and parameters' shapes of a network: tracing one takes as long as reading it."""
    return base.split(variants.abstract(config, dtype=dtype))


def shapes(config: ImageModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a network."""
    return {path: leaf.shape for path, leaf in names.flatten(_abstract(config)[1])}


def misfits(state: Mapping[str, Any], config: ImageModelConfig, layout: Layout) -> list[str]:
    """What keeps tensors (of any kind) from being this network's: a line for each kind."""
    wanted = expected(config, layout)
    unused = layout.unused(config)
    there = {name: tensor for name, tensor in wanted.items() if name in state}
    kinds = {
        "missing": [n for n, tensor in wanted.items() if n not in state and not tensor.absent],
        "unexpected": [name for name in state if name not in wanted and name not in unused],
        "misshaped": [
            f"{name} (expected {tensor.shape}, got {tuple(state[name].shape)})"
            for name, tensor in there.items()
            if tuple(state[name].shape) != tensor.shape
        ],
    }
    types = {name: str(state[name].dtype).removeprefix("torch.") for name in there}
    odd = {name: dtype for name, dtype in types.items() if dtype not in _FLOATS}
    few = {name for name, dtype in odd.items() if dtype.startswith(("float8", "f8"))}
    kinds["not floating-point"] = [f"{name} ({odd[name]})" for name in odd if name not in few]
    kinds["of 8 bits (save them as bfloat16)"] = [f"{name} ({odd[name]})" for name in sorted(few)]
    return [f"{len(found)} {kind}: {listed(found)}" for kind, found in kinds.items() if found]


def expected(config: ImageModelConfig, layout: Layout) -> dict[str, names.Tensor]:
    """Every tensor of a file of this network, by its name there."""
    return names.expected(layout.rows(config), config, shapes(config))


def check(state: Mapping[str, Any], config: ImageModelConfig, layout: Layout) -> None:
    """Whether tensors, of which only shapes and types are looked at, are this network's.

    Raises:
        ValueError: names every missing, unexpected, misshaped and non-floating tensor at once.
    """
    if problems := misfits(state, config, layout):
        head = any("head" in problem for problem in problems)
        raise ValueError(
            f"tensors do not fit {describe(config)}:\n  "
            + "\n  ".join(problems)
            + "\nnothing was loaded; check the declaration and the file (--inspect)"
            + (", or leave the head out with drop_head=True (--drop-head)" if head else "")
        )


def to_params(
    state: Mapping[str, np.ndarray], config: ImageModelConfig, layout: Layout
) -> dict[str, np.ndarray]:
    """A file's tensors that were checked, by their name there, as our parameters by path."""
    wanted = expected(config, layout)
    parts: dict[str, list[np.ndarray]] = {}
    for name, tensor in wanted.items():
        if name not in state and tensor.absent:
            values = np.asarray(tensor.absent(config))
        else:
            values = state[name]
        parts.setdefault(tensor.ours, []).append(tensor.transform.ours(values, config))
    return {
        path: found[0] if len(found) == 1 else np.concatenate(found, axis=-1)
        for path, found in parts.items()
    }


def to_state(
    params: Mapping[str, np.ndarray],
    config: ImageModelConfig,
    layout: Layout,
    unused: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The reverse of `to_params`, contiguous.

    Args:
        params: our parameters by path.
        config: the network's.
        layout: of the file.
        unused: tensors that the file the weights came from had and nothing uses. Where they
            are absent, the layout's stand in, since `strict=True` wants them.
    """
    wanted = names.expected(
        layout.rows(config), config, {path: x.shape for path, x in params.items()}
    )
    state = {
        name: np.ascontiguousarray(tensor.transform.theirs(np.asarray(params[tensor.ours]), config))
        for name, tensor in wanted.items()
    }
    dtype = np.asarray(params["cls_token"]).dtype
    for name, values in layout.unused(config).items():
        if values is not None:
            state[name] = values.astype(dtype)
    return state | dict(unused or {})


def build(params: Mapping[str, Any], config: ImageModelConfig, dtype: Any = None) -> Transformer:
    """A network with these parameters, in float32."""
    definition, _ = _abstract(config, dtype or jnp.float32)
    weights = {path: jnp.asarray(x, jnp.float32) for path, x in params.items()}
    return base.merge(definition, names.unflatten(weights))


def describe(config: ImageModelConfig) -> str:
    """A network in a few words."""
    alike = ("family", "dim", "depth", "patch_size", "heads", "registers", "layer_scale", "ffn")
    named = [
        name
        for name, known in variants.VARIANTS.items()
        if all(getattr(known, field, None) == getattr(config, field, None) for field in alike)
    ]
    text = (
        f"{config.family} of width {config.dim}, depth {config.depth}, patch {config.patch_size}, "
        f"{config.heads} head{'s' * (config.heads != 1)}, {config.classes or 'no'} classes"
    )
    return text + (f" (the size of {', '.join(named)})" if named else "")
