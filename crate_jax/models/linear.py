"""Dense maps as torch.nn.Linear draws and computes them; what every operator here is made of."""

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling
from jax.typing import DTypeLike

# torch.nn.Linear: weight and bias uniform within 1 / sqrt(fan_in).
torch_kernel = variance_scaling(1 / 3, "fan_in", "uniform")
# torch's kaiming_uniform with a = 0: uniform within sqrt(6 / fan_in). CRATE draws D from it.
kaiming_uniform = variance_scaling(2.0, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """torch.nn.Linear's bias: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LinearOptions(TypedDict, total=False):
    """What the attention operators and the MLP hand on to each of their `linear` maps."""

    dtype: DTypeLike
    kernel_init: Initializer
    bias_init: Initializer


def linear(
    fan_in: int,
    fan_out: int,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    bias: bool = True,
    kernel_init: Initializer = torch_kernel,
    bias_init: Initializer | None = None,
) -> nnx.Linear:
    """A dense map computed in `dtype` from float32 parameters, initialised as torch.nn.Linear."""
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or torch_bias(fan_in),
        rngs=rngs,
    )
