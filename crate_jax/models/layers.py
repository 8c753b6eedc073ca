"""The paper and nothing else: attention, MSSA, ISTA, and the layer that joins two operators.

Parameters, norms and softmax are float32; everything else is computed in `dtype`. Tokens are
[b, 1+n, d] with [CLS] first. Attention operators return `(update, query, key)`: the two arrays from
which every analysis of this project starts, [b, 1+n, heads, d_head], where for CRATE query is key.
"""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crate_jax.models.backends import Backend, Heads, attend
from crate_jax.models.linear import LinearOptions, kaiming_uniform, linear
from crate_jax.models.norm import LayerNorm

Tokens = Float[Array, "b tokens d"]
AttentionOperator = Callable[[Tokens], tuple[Tokens, Heads, Heads]]


class MSSA(nnx.Module):
    """Multi-head subspace self-attention (2306.01129, eq. 14; as in the public code).

    With w = x U split into heads, MSSA(x) = concat_k softmax(w_k w_k^T / sqrt(d_head)) w_k O + b:
    one map U is query, key and value. Deviations of the code from the paper, followed here: the
    output map O, b is free instead of U^T, and with one head of full width there is no output map
    at all. CRATE-alpha has the output map without b (`output_bias=False`), and in its JAX class
    with one head of full width too (`full_width_output=True`).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        output_bias: bool = True,
        full_width_output: bool = False,
        backend: Backend = "xla",
        **options: Unpack[LinearOptions],
    ):
        self.heads, self.head_dim = heads, head_dim
        self.backend: Backend = backend
        width = heads * head_dim
        self.subspace = linear(dim, width, rngs=rngs, bias=False, **options)
        if heads == 1 and head_dim == dim and not full_width_output:
            self.output = None
        else:
            self.output = linear(width, dim, rngs=rngs, bias=output_bias, **options)

    def __call__(self, x: Tokens) -> tuple[Tokens, Heads, Heads]:
        """x [b, tokens, d], normalised -> (update [b, tokens, d], w, w)."""
        flat = self.subspace(x)
        w = flat.reshape(*x.shape[:2], self.heads, self.head_dim)
        update = attend(w, w, w, self.backend).reshape(flat.shape)
        return update if self.output is None else self.output(update), w, w


class ISTA(nnx.Module):
    """One proximal-gradient step of non-negative sparse coding in a d x d dictionary D.

    ISTA(y) = relu(y + eta (y - y D^T) D - eta lambda), rows are tokens (2306.01129, eq. 17). The
    public code multiplies three times (y D^T, then D, and y D); D^T y - D^T D y = D^T (y - D y)
    needs two. `soft=True` is CRATE-sth of 2308.16271: the soft threshold
    sign(u) relu(|u| - eta lambda) in place of relu(u - eta lambda), without the sign constraint.
    """

    def __init__(
        self,
        dim: int,
        *,
        step_size: float,
        lambd: float,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        soft: bool = False,
    ):
        self.step_size, self.lambd, self.soft, self.dtype = step_size, lambd, soft, dtype
        self.dictionary = nnx.Param(kaiming_uniform(rngs.params(), (dim, dim), jnp.float32))

    def __call__(self, y: Tokens) -> Tokens:
        """y [b, tokens, d], normalised -> sparse codes [b, tokens, d]."""
        y = y.astype(self.dtype)
        dictionary = self.dictionary[...].astype(self.dtype)
        step = y + self.step_size * ((y - y @ dictionary.T) @ dictionary)
        threshold = self.step_size * self.lambd
        if self.soft:
            return jnp.sign(step) * jax.nn.relu(jnp.abs(step) - threshold)
        return jax.nn.relu(step - threshold)


class Layer(nnx.Module):
    """One layer on tokens z: z_half = z + attention(LN z), then the second operator on LN z_half.

    `skip` adds z_half to the second operator's output: ViT and CRATE-alpha do, CRATE does not
    (ISTA's own y is its starting point). The first skip is from the un-normalised z, as in the
    public code; Algorithm 1 of 2308.16271 prints LN(z).
    """

    def __init__(
        self,
        attention: AttentionOperator,
        operator: Callable[[Tokens], Tokens],
        *,
        dim: int,
        epsilon: float,
        skip: bool,
    ):
        self.attention_norm = LayerNorm(dim, epsilon)
        self.attention = attention
        self.operator_norm = LayerNorm(dim, epsilon)
        self.operator = operator
        self.skip = skip

    def __call__(self, z: Tokens) -> tuple[Tokens, Heads, Heads]:
        """z [b, tokens, d] -> (next z, query, key)."""
        update, query, key = self.attention(self.attention_norm(z))
        half = z + update
        out = self.operator(self.operator_norm(half))
        return (half + out if self.skip else out), query, key
