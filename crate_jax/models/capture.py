"""Tokens through layers: which layers' arrays are kept, and what the backward pass recomputes."""

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from crate_jax.models.backends import Heads
from crate_jax.models.layers import Tokens

Remat = Literal["none", "full", "dots"]
REMAT_POLICIES: dict[Remat, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Capture = bool | np.bool_ | int | Iterable[int] | Int[np.ndarray, " k"] | None
LayerFunction = Callable[[Tokens], tuple[Tokens, Heads, Heads]]


def run_layers(
    layers: Sequence[LayerFunction],
    z: Tokens,
    capture: Capture,
    remat: Remat,
    scan: bool = False,
) -> tuple[Tokens, dict[str, Array]]:
    """Tokens through all layers, with the captured arrays of the layers asked for.

    Args:
        layers: modules mapping z to (z, query, key).
        z: [b, 1+n, d].
        capture: False for nothing, True for every layer, or indices (negative ones count from the
            end), in the order wanted.
        remat: a name of REMAT_POLICIES: what the backward pass recomputes.
        scan: whether layers are looped over, so that one of them is compiled; alike ones.

    Returns:
        (z, {"query", "key": f32[layers, b, 1+n, heads, d_head], "tokens": f32[layers, b, 1+n, d]}),
        the dictionary empty without capture. Where query is key, both are one array.
    """
    wanted = captured_layers(capture, len(layers))
    # Layers that know their grid (rotary positions) are no modules, and are not stacked.
    alike = all(isinstance(layer, nnx.Module) for layer in layers)
    run = _scanned if scan and alike else _unrolled
    parts = []
    for captured, group in itertools.groupby(range(len(layers)), wanted.__contains__):
        z, kept = run([layers[index] for index in group], z, captured, remat)
        parts += [kept] if captured else []
    if not wanted:
        return z, {}
    in_order = sorted(set(wanted))
    places = np.array([in_order.index(index) for index in wanted])
    out = {}
    for name in parts[0]:
        array = jnp.concatenate([part[name] for part in parts]).astype(jnp.float32)
        out[name] = array if tuple(in_order) == wanted else array[places]
    return z, {"key": out["query"]} | out


def _unrolled(
    layers: Sequence[LayerFunction], z: Tokens, captured: bool, remat: Remat
) -> tuple[Tokens, dict[str, Array]]:
    """Layers one after the other, and their captured arrays, stacked."""
    kept = []
    for layer in layers:
        z, arrays = _run_layer(layer, z, remat)
        kept.append(arrays)
    return z, jax.tree.map(lambda *a: jnp.stack(a), *kept) if captured else {}


def _scanned(
    layers: Sequence[Any], z: Tokens, captured: bool, remat: Remat
) -> tuple[Tokens, dict[str, Array]]:
    """The same as a loop over one layer, with the parameters of all stacked."""
    definitions, states = zip(*map(nnx.split, layers), strict=True)

    def body(z, state):
        z, arrays = _run_layer(nnx.merge(definitions[0], state), z, remat)
        return z, arrays if captured else {}

    return jax.lax.scan(body, z, jax.tree.map(lambda *a: jnp.stack(a), *states))


def _run_layer(layer: LayerFunction, z: Tokens, remat: Remat) -> tuple[Tokens, dict[str, Array]]:
    """One layer, and what it shows; without a key where that is the query."""

    def run(z):
        z, query, key = layer(z)
        return z, {"query": query, "tokens": z} | ({} if key is query else {"key": key})

    policy = REMAT_POLICIES[remat]
    return run(z) if policy is None else jax.checkpoint(run, policy=policy)(z)


def captured_layers(capture: Capture, depth: int) -> tuple[int, ...]:
    """The layer indices in [0, depth) that a `capture` argument names, in the order given.

    Raises:
        ValueError: for a layer that the network does not have, or what is no number of a layer.
    """
    if capture is None or isinstance(capture, bool | np.bool_):
        return tuple(range(depth)) if capture else ()
    named: Any = capture
    try:
        several = tuple(named) if np.ndim(named) else (named,)
        if any(isinstance(index, bool | np.bool_) for index in several):
            raise TypeError  # True within a list would be layer 1
        indices = tuple(operator.index(index) for index in several)
    except TypeError as error:
        raise ValueError(
            f"capture: expected True, False, a layer's index such as -1, or several such as "
            f"(10, 11), got {capture!r}"
        ) from error
    for index in indices:
        if not -depth <= index < depth:
            raise ValueError(
                f"capture: expected layers within [{-depth}, {depth - 1}] of this model of depth "
                f"{depth}, got {index}"
            )
    return tuple(index % depth for index in indices)
