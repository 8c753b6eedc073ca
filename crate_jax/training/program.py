"""What a run computes, jitted for its devices: the one place where a step is put together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax
from flax import nnx

from crate_jax.models import backends, base, variants
from crate_jax.models.base import Computation, ImageModelConfig
from crate_jax.training import optim, sharding, topology
from crate_jax.training.step import Batch, initial, make_step, metric_names, objective


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions, and the shapes that they work on.

    Attributes:
        definition: the static half of `base.split`.
        attention: what computes attention, and why.
        init: jitted key -> (parameters, training state), born sharded: no device ever holds what
            it is not to keep.
        step: jitted (parameters, training state, batch) -> the same after one update; the first
            two are donated.
        shapes: of (parameters, training state), with their shardings.
    """

    definition: nnx.GraphDef
    attention: backends.Choice
    init: Callable[[jax.Array], tuple[Any, dict]]
    step: Callable[[Any, dict, Batch], tuple[Any, dict]]
    shapes: tuple[Any, dict]


def make(
    config: ml_collections.ConfigDict,
    model_config: ImageModelConfig,
    mesh: jax.sharding.Mesh,
    rate: optax.Schedule,
) -> Program:
    """The program of a config on some devices; nothing is compiled yet.

    Args:
        config: resolved.
        model_config: its network.
        mesh: the devices; they may be of a topology that is not there.
        rate: learning rate by step.

    Raises:
        ValueError: for an attention backend that these devices do not have.
    """
    attention = choose_attention(config, model_config, mesh)
    options = computation(config, attention, mesh)
    definition, params = base.split(variants.abstract(model_config, **options))
    optimizer = optim.optimizer(
        config.optimizer, rate, variants.FAMILIES[model_config.family][1].fixed
    )

    def init(key):
        params = base.split(variants.build(model_config, key, **options))[1]
        return params, initial(optimizer, params, metric_names(config))

    # Not of `init`: tracing the drawing of weights takes as long as all else here.
    state = jax.eval_shape(lambda p: initial(optimizer, p, metric_names(config)), params)
    shapes = params, state
    shardings = sharding.state_shardings(mesh, shapes)
    step = make_step(
        definition,
        objective(config),
        optimizer,
        seed=config.seed,
        accumulate=config.accumulate,
    )
    return Program(
        definition,
        attention,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings),
        shapes=jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        ),
    )


def choose_attention(
    config: ml_collections.ConfigDict, model_config: ImageModelConfig, mesh: jax.sharding.Mesh
) -> backends.Choice:
    """What computes attention on these devices: `backends.choose`."""
    return backends.choose(
        config.attention_backend,
        tokens=1 + getattr(model_config, "registers", 0) + model_config.patches,
        head_dim=model_config.head_dim,
        dtype=config.dtype,
        tied=model_config.family.startswith("crate")
        and getattr(model_config, "attention", "mssa") == "mssa",
        platform=mesh.devices.flat[0].platform,
        absent=topology.absent(mesh),
    )


def computation(
    config: ml_collections.ConfigDict, attention: backends.Choice, mesh: jax.sharding.Mesh
) -> Computation:
    """How the network is computed in a run."""
    return {
        "dtype": config.dtype,
        "remat": config.remat,
        "attention_backend": attention.backend,
        "scan": config.scan_layers,
        "mesh": mesh.abstract_mesh if attention.backend == "pallas" else None,
    }
