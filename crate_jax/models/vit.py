"""ViT in DINO's form: the black-box baseline.

Convolutional patch embedding, bias in qkv, erf GELU, LayerNorm epsilon 1e-6 (2104.14294 and its
code, which is timm's ViT). The ViT of 2306.01129 is timm's with `global_pool=True`, the mean of the
patch tokens: its [CLS] gets no direct supervision. Ours pools by [CLS]; `pool="mean"` is the
control.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models import layers
from crate_jax.models.base import ImageModelConfig, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(ImageModelConfig):
    """What a ViT is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "vit"

    mlp_ratio: float = 4.0
    epsilon: float = 1e-6


class ViT(Transformer):
    """Patch embedding, [CLS] and positions, MHSA and MLP layers with skips, LN, Linear.

    With `pool="cls"` features are LN(z)[CLS]; with `pool="mean"` they are LN(mean of the patch
    tokens), timm's `fc_norm`. Weights start from a normal of deviation 0.02 (DINO truncates it at
    +-2, a hundred deviations), biases from zero.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        rngs: nnx.Rngs,
        dtype: layers.Dtype = jnp.float32,
        remat: str = "none",
    ):
        super().__init__(config, dtype=dtype, remat=remat)
        c = config
        normal = jax.nn.initializers.truncated_normal(0.02, lower=-100, upper=100)
        init = {
            "rngs": rngs,
            "dtype": dtype,
            "kernel_init": normal,
            "bias_init": nnx.initializers.zeros_init(),
        }
        self.patch_embed = layers.linear(
            3 * c.patch_size**2,
            c.dim,
            rngs=rngs,
            dtype=dtype,  # a Conv2d keeps torch's default
        )
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        self.layers = nnx.List(
            [
                layers.Layer(
                    layers.MHSA(c.dim, c.heads, c.head_dim, qkv_bias=True, **init),
                    layers.MLP(c.dim, ratio=c.mlp_ratio, **init),
                    dim=c.dim,
                    epsilon=c.epsilon,
                    skip=True,
                    rngs=rngs,
                )
                for _ in range(c.depth)
            ]
        )
        self.norm = layers.layer_norm(c.dim, c.epsilon, rngs)
        self.head = layers.linear(c.dim, c.classes, **init) if c.classes else None

    def embed(self, images: jax.Array) -> jax.Array:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(layers.patchify(images, self.config.patch_size))

    def pool(self, z: jax.Array) -> jax.Array:
        """LN(z)[CLS], or LN of the mean over the patch tokens."""
        if self.config.pool == "cls":
            return self.norm(z[:, 0])
        return self.norm(jnp.mean(z[:, 1:], axis=1, dtype=jnp.float32))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [b, d] -> logits [b, classes]."""
        return features if self.head is None else self.head(features)
