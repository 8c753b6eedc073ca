"""The operators of CRATE and ViT: MSSA, ISTA, MHSA, MLP, and the layer that joins two of them.

Parameters, norms and softmax are float32; everything else is computed in `dtype`. Tokens are
[b, 1+n, d] with [CLS] first. Attention operators return `(update, query, key)`: the two arrays from
which every analysis of this project starts, [b, 1+n, heads, d_head], where for CRATE query is key.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling

Dtype = jnp.dtype | type
Attention = Literal["mssa", "mhsa"]
Nonlinearity = Literal["ista", "ista-soft-threshold", "mlp"]

# torch.nn.Linear: weight and bias uniform within 1 / sqrt(fan_in).
torch_kernel = variance_scaling(1 / 3, "fan_in", "uniform")
# torch's kaiming_uniform with a = 0: uniform within sqrt(6 / fan_in). CRATE draws D from it.
kaiming_uniform = variance_scaling(2.0, "fan_in", "uniform")
# Queries a block of this many at a time above twice as many tokens, so that a 60 x 60 grid never
# holds [heads, 3601, 3601] (622 MB an image for 12 heads).
QUERY_BLOCK = 512


def torch_bias(fan_in: int) -> Initializer:
    """torch.nn.Linear's bias: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_norm(dim: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, with the variance taken around the mean (not E[x^2] - E[x]^2)."""
    return nnx.LayerNorm(
        dim, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
    )


class LinearOptions(TypedDict, total=False):
    """What the attention operators and the MLP hand on to each of their `linear` maps."""

    dtype: Dtype
    kernel_init: Initializer
    bias_init: Initializer


def linear(
    fan_in: int,
    fan_out: int,
    *,
    rngs: nnx.Rngs,
    dtype: Dtype = jnp.float32,
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


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(Q K^T / sqrt(d_head)) V per head, softmax in float32; [b, tokens, heads, d_head].

    Long sequences are taken in blocks of queries, so that memory stays linear in the tokens.
    """
    tokens = query.shape[1]
    if tokens <= 2 * QUERY_BLOCK:
        return jax.nn.dot_product_attention(query, key, value)
    blocks = -(-tokens // QUERY_BLOCK)
    padded = jnp.pad(query, ((0, 0), (0, blocks * QUERY_BLOCK - tokens), (0, 0), (0, 0)))
    padded = padded.reshape(query.shape[0], blocks, QUERY_BLOCK, *query.shape[2:])
    out = jax.lax.map(
        lambda rows: jax.nn.dot_product_attention(rows, key, value), padded.swapaxes(0, 1)
    )
    return out.swapaxes(0, 1).reshape(query.shape[0], -1, *query.shape[2:])[:, :tokens]


class MSSA(nnx.Module):
    """Multi-head subspace self-attention (2306.01129, eq. 14; as in the public code).

    With w = x U split into heads, MSSA(x) = concat_k softmax(w_k w_k^T / sqrt(d_head)) w_k O + b:
    one map U is query, key and value. Deviations of the code from the paper, followed here: the
    output map O, b is free instead of U^T, and with one head of full width there is no output map
    at all. CRATE-alpha has the output map without b (`output_bias=False`).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        output_bias: bool = True,
        **options: Unpack[LinearOptions],
    ):
        self.heads, self.head_dim = heads, head_dim
        width = heads * head_dim
        self.subspace = linear(dim, width, rngs=rngs, bias=False, **options)
        if heads == 1 and head_dim == dim:
            self.output = None
        else:
            self.output = linear(width, dim, rngs=rngs, bias=output_bias, **options)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [b, tokens, d], normalised -> (update [b, tokens, d], w, w)."""
        flat = self.subspace(x)
        w = flat.reshape(*x.shape[:2], self.heads, self.head_dim)
        update = attend(w, w, w).reshape(flat.shape)
        return update if self.output is None else self.output(update), w, w


class MHSA(nnx.Module):
    """Multi-head self-attention with separate query, key and value maps (ViT).

    As an ablation inside CRATE it has no bias in the three maps (`qkv_bias=False`), so that tying
    them is the only difference from MSSA.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        qkv_bias: bool,
        **options: Unpack[LinearOptions],
    ):
        self.heads, self.head_dim = heads, head_dim
        width = heads * head_dim
        self.qkv = linear(dim, 3 * width, rngs=rngs, bias=qkv_bias, **options)
        self.output = linear(width, dim, rngs=rngs, **options)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [b, tokens, d], normalised -> (update [b, tokens, d], query, key)."""
        width = self.heads * self.head_dim
        split = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.head_dim)
        query, key, value = jnp.moveaxis(split, 2, 0)
        update = attend(query, key, value).reshape(*x.shape[:2], width)
        return self.output(update), query, key


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
        dtype: Dtype = jnp.float32,
        soft: bool = False,
    ):
        self.step_size, self.lambd, self.soft, self.dtype = step_size, lambd, soft, dtype
        self.dictionary = nnx.Param(kaiming_uniform(rngs.params(), (dim, dim), jnp.float32))

    def __call__(self, y: jax.Array) -> jax.Array:
        """y [b, tokens, d], normalised -> sparse codes [b, tokens, d]."""
        y = y.astype(self.dtype)
        dictionary = self.dictionary[...].astype(self.dtype)
        step = y + self.step_size * ((y - y @ dictionary.T) @ dictionary)
        threshold = self.step_size * self.lambd
        if self.soft:
            return jnp.sign(step) * jax.nn.relu(jnp.abs(step) - threshold)
        return jax.nn.relu(step - threshold)


class OvercompleteISTA(nnx.Module):
    """Two steps of non-negative LASSO from zero in a d x 4d dictionary D (CRATE-alpha, 2405.20299).

    With rows as tokens: z1 = relu(eta x D - eta lambda),
    z2 = relu(z1 - eta (z1 D^T - x) D - eta lambda), and the output is z2 D1^T with D1 untied
    from D. The skip around it belongs to the layer. D and D1 start uniform within sqrt(6 / d), as
    in the authors' JAX code; their PyTorch class takes the other axis as fan-in, sqrt(6 / 4d).
    """

    def __init__(
        self,
        dim: int,
        *,
        step_size: float,
        lambd: float,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
        ratio: int = 4,
    ):
        self.step_size, self.lambd, self.dtype = step_size, lambd, dtype
        shape = (dim, ratio * dim)
        self.dictionary = nnx.Param(kaiming_uniform(rngs.params(), shape, jnp.float32))
        self.output_dictionary = nnx.Param(kaiming_uniform(rngs.params(), shape, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, tokens, d], normalised -> its reconstruction from sparse codes [b, tokens, d]."""
        x = x.astype(self.dtype)
        dictionary = self.dictionary[...].astype(self.dtype)
        threshold = self.step_size * self.lambd
        codes = jax.nn.relu(self.step_size * (x @ dictionary) - threshold)
        gradient = (codes @ dictionary.T - x) @ dictionary
        codes = jax.nn.relu(codes - self.step_size * gradient - threshold)
        return codes @ self.output_dictionary[...].astype(self.dtype).T


class MLP(nnx.Module):
    """Linear, erf GELU, Linear: the ViT's second operator, four times as wide inside."""

    def __init__(
        self,
        dim: int,
        *,
        rngs: nnx.Rngs,
        ratio: float = 4,
        **options: Unpack[LinearOptions],
    ):
        hidden = int(dim * ratio)
        self.expand = linear(dim, hidden, rngs=rngs, **options)
        self.contract = linear(hidden, dim, rngs=rngs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, tokens, d] -> [b, tokens, d]."""
        return self.contract(jax.nn.gelu(self.expand(x), approximate=False))


class Layer(nnx.Module):
    """One layer on tokens z: z_half = z + attention(LN z), then the second operator on LN z_half.

    `skip` adds z_half to the second operator's output: ViT and CRATE-alpha do, CRATE does not
    (ISTA's own y is its starting point). The first skip is from the un-normalised z, as in the
    public code; Algorithm 1 of 2308.16271 prints LN(z).
    """

    def __init__(
        self,
        attention: nnx.Module,
        operator: nnx.Module,
        *,
        dim: int,
        epsilon: float,
        skip: bool,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = layer_norm(dim, epsilon, rngs)
        self.attention = attention
        self.operator_norm = layer_norm(dim, epsilon, rngs)
        self.operator = operator
        self.skip = skip

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z [b, tokens, d] -> (next z, query, key)."""
        update, query, key = self.attention(self.attention_norm(z))
        half = z + update
        out = self.operator(self.operator_norm(half))
        return (half + out if self.skip else out), query, key


class DecoderLayer(nnx.Module):
    """CRATE-MAE's decoder layer (2404.02446): a = LN(z) A^T, then z = a - MSSA(LN a).

    It runs a CRATE layer backwards: A stands for the inverse of the sparsification, and the minus
    sign undoes the compression. A starts kaiming-uniform, as D does.
    """

    def __init__(
        self,
        attention: nnx.Module,
        *,
        dim: int,
        epsilon: float,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        self.operator_norm = layer_norm(dim, epsilon, rngs)
        self.operator = linear(
            dim, dim, rngs=rngs, dtype=dtype, bias=False, kernel_init=kaiming_uniform
        )
        self.attention_norm = layer_norm(dim, epsilon, rngs)
        self.attention = attention

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z [b, tokens, d] -> (next z, query, key)."""
        a = self.operator(self.operator_norm(z))
        update, query, key = self.attention(self.attention_norm(a))
        return a - update, query, key


REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_layers(
    layers: nnx.List, z: jax.Array, capture: bool | int | tuple[int, ...], remat: str = "none"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tokens through all layers, with the captured arrays of the layers asked for.

    Args:
        layers: modules mapping z to (z, query, key).
        z: [b, 1+n, d].
        capture: False for nothing, True for every layer, or indices (negative ones count from the
            end), in the order wanted.
        remat: a name of REMAT_POLICIES: what the backward pass recomputes.

    Returns:
        (z, {"query", "key": f32[layers, b, 1+n, heads, d_head], "tokens": f32[layers, b, 1+n, d]}),
        the dictionary empty without capture. Where query is key, both are one array.
    """
    wanted = captured_layers(capture, len(layers))
    kept = {}
    for index, layer in enumerate(layers):
        run = layer
        if REMAT_POLICIES[remat] is not None:
            run = jax.checkpoint(
                lambda tokens, layer=layer: layer(tokens), policy=REMAT_POLICIES[remat]
            )
        z, query, key = run(z)
        if index in wanted:
            kept[index] = (query, key, z)
    if not wanted:
        return z, {}
    columns = zip(*(kept[index] for index in wanted), strict=True)
    query, key, tokens = (jnp.stack(c).astype(jnp.float32) for c in columns)
    tied = all(kept[index][0] is kept[index][1] for index in wanted)
    return z, {"query": query, "key": query if tied else key, "tokens": tokens}


def captured_layers(capture: bool | int | Iterable[int] | None, depth: int) -> tuple[int, ...]:
    """The layer indices in [0, depth) that a `capture` argument names, in the order given.

    Raises:
        ValueError: for a layer that the network does not have, or what is no number of a layer.
    """
    if capture is None or isinstance(capture, bool | np.bool_):
        return tuple(range(depth)) if capture else ()
    try:
        several = tuple(capture) if np.ndim(capture) else (capture,)
        if any(isinstance(index, bool | np.bool_) for index in several):
            raise TypeError  # True within a list would be layer 1
        indices = tuple(operator.index(index) for index in several)
    except TypeError as error:
        raise ValueError(
            f"capture: expected True, False, a layer's index such as -1, or several such as "
            f"(10, 11); got {capture!r}"
        ) from error
    for index in indices:
        if not -depth <= index < depth:
            raise ValueError(
                f"capture: expected layers within [{-depth}, {depth - 1}] of this model of depth "
                f"{depth}, got {index}"
            )
    return tuple(index % depth for index in indices)


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """[b, h, w, c] -> [b, (h/p)(w/p), p p c]: patches in raster order, (row, column, channel)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """[b, rows columns, p p c] -> [b, rows p, columns p, c]: the reverse of `patchify`."""
    b, _, pixels = patches.shape
    x = patches.reshape(b, *grid, patch, patch, pixels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid[0] * patch, grid[1] * patch, -1)


def patch_grid(images: jax.Array, patch: int) -> tuple[int, int]:
    """(rows, columns) of images f[b, h, w, 3].

    Raises:
        ValueError: another shape, sides that the patch does not divide, or integers: pixels that
            were not normalised would pass through the first LayerNorm and give plausible nonsense.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected [batch, height, width, 3], got shape {tuple(images.shape)}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: expected normalised floating-point numbers, got {images.dtype}; pass pixels "
            "through model.preprocess first"
        )
    height, width = images.shape[1:3]
    if height % patch or width % patch or not height or not width:
        raise ValueError(
            f"images: expected height and width that are multiples of the patch size {patch}, got "
            f"{height} x {width}; resize or crop to "
            f"{max(1, round(height / patch)) * patch} x {max(1, round(width / patch)) * patch}"
        )
    return height // patch, width // patch
