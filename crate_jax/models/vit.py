"""ViT in DINO's form: the black-box baseline.

Convolutional patch embedding, bias in qkv, erf GELU, LayerNorm epsilon 1e-6 (2104.14294 and its
code, which is timm's ViT). The ViT of 2306.01129 is timm's with `global_pool=True`, the mean of the
patch tokens: its [CLS] gets no direct supervision. Ours pools by [CLS]; `pool="mean"` is the
control.
"""

import dataclasses
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crate_jax.models import pooling
from crate_jax.models.base import Computation, ImageModelConfig, Transformer, described
from crate_jax.models.layers import Heads, Layer, Tokens, attend, layer_norm
from crate_jax.models.linear import LinearOptions, linear
from crate_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(ImageModelConfig):
    """What a ViT is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "vit"
    takes_registers: ClassVar[bool] = True
    pools: ClassVar[tuple[str, ...]] = ("cls", "mean", "last_vit")

    mlp_ratio: float = described(4.0, "width of the MLP by dim")
    epsilon: float = described(1e-6, "of every LayerNorm")
    # timm's models with global_pool="avg" have it before without their fc_norm, after with it.
    norm_before_pool: bool = described(False, "last norm before the mean of tokens, not after")

    def __post_init__(self):
        super().__post_init__()
        self.expect_finite("mlp_ratio", least=1 / self.dim)  # at least one hidden unit


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

    def __call__(self, x: Tokens) -> tuple[Tokens, Heads, Heads]:
        """x [b, tokens, d], normalised -> (update [b, tokens, d], query, key)."""
        width = self.heads * self.head_dim
        split = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.head_dim)
        query, key, value = jnp.moveaxis(split, 2, 0)
        update = attend(query, key, value).reshape(*x.shape[:2], width)
        return self.output(update), query, key


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


class ViT(Transformer[ViTConfig]):
    """Patch embedding, [CLS] and positions, MHSA and MLP layers with skips, LN, Linear.

    With `pool="cls"` features are LN(z)[CLS]; with `pool="mean"` they are LN(mean of the patch
    tokens), timm's `fc_norm`, or the mean of LN(z) with `norm_before_pool`. Weights start from a
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
        self.norm = layer_norm(c.dim, c.epsilon, rngs)
        self.head = linear(c.dim, c.classes, rngs=rngs, **init) if c.classes else None

    def _layer(self, rngs: nnx.Rngs, init: LinearOptions) -> Layer:
        c = self.config
        attention = MHSA(c.dim, c.heads, c.head_dim, rngs=rngs, qkv_bias=True, **init)
        operator = MLP(c.dim, rngs=rngs, ratio=c.mlp_ratio, **init)
        return Layer(attention, operator, dim=c.dim, epsilon=c.epsilon, skip=True, rngs=rngs)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(patchify(images, self.config.patch_size))

    def pool(self, z: Tokens) -> Float[Array, "b d"]:
        """LN(z)[CLS], LN of the mean over the patch tokens, the mean of LN(z), or LaSt-ViT's."""
        if self.config.pool == "cls":
            return self.norm(z[:, 0])
        patches = z[:, 1 + self.config.registers :]
        if self.config.pool == "last_vit":
            return pooling.last_vit(self.norm(patches))
        if self.config.norm_before_pool:
            return jnp.mean(self.norm(patches), axis=1, dtype=jnp.float32)
        return self.norm(jnp.mean(patches, axis=1, dtype=jnp.float32))

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features [b, d] -> logits [b, classes]."""
        return features if self.head is None else self.head(features)
