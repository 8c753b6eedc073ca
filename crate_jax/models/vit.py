"""ViT in DINO's form: the black-box baseline, and with its options DINOv2's and timm's.

Convolutional patch embedding, bias in qkv, erf GELU, LayerNorm epsilon 1e-6 (2104.14294 and its
code, which is timm's ViT). The ViT of 2306.01129 is timm's with `global_pool=True`, the mean of the
patch tokens: its [CLS] gets no direct supervision. Ours pools by [CLS]; `pool="mean"` is the
control. What DINOv2 adds (2304.07193, 2309.16588): registers, LayerScale and, in its giant, a gated
FFN; `dino.dinov2` has them together. timm's variants are combinations of the same.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crate_jax.models import pooling
from crate_jax.models.backends import Backend, Heads, attend
from crate_jax.models.base import Computation, ImageModelConfig, Transformer, described
from crate_jax.models.layers import Layer, Tokens
from crate_jax.models.linear import LinearOptions, linear
from crate_jax.models.norm import LayerNorm
from crate_jax.models.patches import patchify

FFN = Literal["mlp", "swiglu"]
LAYER_SCALE = 1e-5  # where training starts, as DINOv2's does
Rotate = Callable[[Heads], Heads]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(ImageModelConfig):
    """What a ViT is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "vit"
    takes_registers: ClassVar[bool] = True
    pools: ClassVar[tuple[str, ...]] = ("cls", "mean", "last_vit", "cls_mean")

    ffn: FFN = described("mlp", "second operator of a layer: mlp, or swiglu, which is gated")
    mlp_ratio: float = described(4.0, "inner width of that operator by dim")
    layer_scale: bool = described(False, "a learned factor for each channel of a layer's updates")
    qkv_bias: bool = described(True, "a bias in query, key and value")
    epsilon: float = described(1e-6, "of every LayerNorm")
    # timm's models with global_pool="avg" have it before without their fc_norm, after with it.
    norm_before_pool: bool = described(False, "last norm before the mean of tokens, not after")

    def __post_init__(self):
        super().__post_init__()
        self.expect("ffn", get_args(FFN))
        self.expect_finite("mlp_ratio", least=1 / self.dim)  # at least one hidden unit

    @property
    def features(self) -> int:
        """Width of what the head reads."""
        return 2 * self.dim if self.pool == "cls_mean" else self.dim


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
        backend: Backend = "xla",
        **options: Unpack[LinearOptions],
    ):
        self.heads, self.head_dim = heads, head_dim
        self.backend: Backend = backend
        width = heads * head_dim
        self.qkv = linear(dim, 3 * width, rngs=rngs, bias=qkv_bias, **options)
        self.output = linear(width, dim, rngs=rngs, **options)

    def __call__(self, x: Tokens, rotate: Rotate | None = None) -> tuple[Tokens, Heads, Heads]:
        """x [b, tokens, d], normalised -> (update [b, tokens, d], query, key).

        `rotate` turns query and key by their positions; both are returned as they were used.
        """
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, self.head_dim)
            for part in jnp.split(self.project(x), 3, axis=-1)
        )
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        update = attend(query, key, value, self.backend)
        update = update.reshape(*x.shape[:2], self.heads * self.head_dim)
        return self.output(update), query, key

    def project(self, x: Tokens) -> Float[Array, "b tokens qkv"]:
        """x [b, tokens, d] -> query, key, value of all heads, side by side."""
        return self.qkv(x)


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

    def __call__(self, x: Tokens) -> Tokens:
        """x [b, tokens, d] -> [b, tokens, d]."""
        return self.contract(jax.nn.gelu(self.expand(x), approximate=False))


class SwiGLU(nnx.Module):
    """Gated FFN (2002.05202): (silu(g) * u) W + b, [g, u] = x V + c, each `ratio` * d wide."""

    def __init__(
        self,
        dim: int,
        *,
        rngs: nnx.Rngs,
        ratio: float,
        **options: Unpack[LinearOptions],
    ):
        hidden = int(dim * ratio)
        self.expand = linear(dim, 2 * hidden, rngs=rngs, **options)
        self.contract = linear(hidden, dim, rngs=rngs, **options)

    def __call__(self, x: Tokens) -> Tokens:
        """x [b, tokens, d] -> [b, tokens, d]."""
        gate, up = jnp.split(self.expand(x), 2, axis=-1)
        return self.contract(jax.nn.silu(gate) * up)


OPERATORS: dict[FFN, type[MLP] | type[SwiGLU]] = {"mlp": MLP, "swiglu": SwiGLU}


class ScaledLayer(Layer):
    """A layer with skips and LayerScale: z += s1 * attention(LN z), z += s2 * operator(LN z).

    s1 and s2, one number a channel, start small (2103.17239), so that a deep network starts near
    the identity. `rotate` is the attention's.
    """

    def __init__(
        self,
        attention: MHSA,
        operator: MLP | SwiGLU,
        *,
        dim: int,
        epsilon: float,
    ):
        super().__init__(attention, operator, dim=dim, epsilon=epsilon, skip=True)
        self.attention_scale = nnx.Param(jnp.full(dim, LAYER_SCALE))
        self.operator_scale = nnx.Param(jnp.full(dim, LAYER_SCALE))

    def __call__(self, z: Tokens, *rotate: Rotate) -> tuple[Tokens, Heads, Heads]:
        """z [b, tokens, d] -> (next z, query, key)."""
        update, query, key = self.attention(self.attention_norm(z), *rotate)
        half = z + update * self.attention_scale[...][None, None].astype(z.dtype)
        update = self.operator(self.operator_norm(half))
        return half + update * self.operator_scale[...][None, None].astype(z.dtype), query, key


class ViT(Transformer[ViTConfig]):
    """Patch embedding, [CLS] and positions, MHSA and MLP layers with skips, LN, Linear.

    With `pool="cls"` features are LN(z)[CLS]; with `pool="mean"` they are LN(mean of the patch
    tokens), timm's `fc_norm`, or the mean of LN(z) with `norm_before_pool`; with `pool="cls_mean"`
    LN(z)[CLS] and the mean of LN(z), 2d numbers, as DINOv2's classifiers. Weights start from a
    normal of deviation 0.02 (DINO truncates it at +-2, a hundred deviations), biases from zero.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, **computation: Unpack[Computation]):
        super().__init__(config, **computation)
        c = config
        normal = jax.nn.initializers.truncated_normal(0.02, lower=-100, upper=100)
        init: LinearOptions = {
            "dtype": self.dtype,
            "kernel_init": normal,
            "bias_init": nnx.initializers.zeros_init(),
        }
        self.patch_embed = linear(
            3 * c.patch_size**2,
            c.dim,
            rngs=rngs,
            dtype=self.dtype,  # a Conv2d keeps torch's default
        )
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        if c.registers:
            self.registers = nnx.Param(normal(rngs.params(), (1, c.registers, c.dim)))
        self.layers = nnx.List([self._layer(rngs, init) for _ in range(c.depth)])
        self.norm = LayerNorm(c.dim, c.epsilon)
        self.head = linear(c.features, c.classes, rngs=rngs, **init) if c.classes else None

    def _layer(self, rngs: nnx.Rngs, init: LinearOptions) -> Layer:
        c = self.config
        attention = MHSA(
            c.dim,
            c.heads,
            c.head_dim,
            rngs=rngs,
            qkv_bias=c.qkv_bias,
            backend=self.attention_backend,
            **init,
        )
        operator = OPERATORS[c.ffn](c.dim, rngs=rngs, ratio=c.mlp_ratio, **init)
        if c.layer_scale:
            return ScaledLayer(attention, operator, dim=c.dim, epsilon=c.epsilon)
        return Layer(attention, operator, dim=c.dim, epsilon=c.epsilon, skip=True)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(patchify(images, self.config.patch_size))

    def normalise(self, z: Tokens) -> Tokens:
        """LN(z) of all tokens: what DINOv2's and timm's code call a layer's features."""
        return self.norm(z)

    def pool(self, z: Tokens) -> Float[Array, "b features"]:
        """LN(z)[CLS], LN of the patches' mean, the mean of LN(z), both of these, or LaSt-ViT's."""
        c, patches = self.config, z[:, 1 + self.config.registers :]
        if c.pool == "cls":
            return self.norm(z[:, 0])
        if c.pool == "last_vit":
            return pooling.last_vit(self.norm(patches))
        if c.pool == "mean" and not c.norm_before_pool:
            return self.norm(jnp.mean(patches, axis=1, dtype=jnp.float32))
        mean = jnp.mean(self.norm(patches), axis=1, dtype=jnp.float32)
        if c.pool == "mean":
            return mean
        return jnp.concatenate([self.norm(z[:, 0]).astype(jnp.float32), mean], axis=-1)

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features [b, d] -> logits [b, classes]."""
        return features if self.head is None else self.head(features)
