"""CRATE-alpha (2405.20299): an overcomplete dictionary and a skip make CRATE scale."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models import layers
from crate_jax.models.base import ImageModelConfig, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateAlphaConfig(ImageModelConfig):
    """What a CRATE-alpha is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate_alpha"

    overcomplete: int = 4  # columns of D per dimension
    step_size: float = 0.1  # eta
    lambd: float = 0.1  # lambda
    epsilon: float = 1e-6  # of the LayerNorms in the layers
    # Of the LayerNorm before the head: 1e-5 in the authors' PyTorch class, 1e-6 in their JAX code.
    head_epsilon: float = 1e-5


class CrateAlpha(Transformer):
    """Convolutional patch embedding with bias, MSSA and overcomplete ISTA with skips, LN + Linear.

    MSSA has no output bias. The patches are not normalised. Initialisation follows the authors'
    JAX code: U, the output map, positions and the head N(0, 0.02), the patch embedding
    kaiming-uniform, [CLS] N(0, 1e-6), biases zero.
    """

    def __init__(
        self,
        config: CrateAlphaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: layers.Dtype = jnp.float32,
        remat: str = "none",
    ):
        super().__init__(config, dtype=dtype, remat=remat)
        c, init = config, {"rngs": rngs, "dtype": dtype}
        normal, zeros = jax.nn.initializers.normal(0.02), nnx.initializers.zeros_init()
        self.patch_embed = layers.linear(
            3 * c.patch_size**2,
            c.dim,
            kernel_init=layers.kaiming_uniform,
            bias_init=zeros,
            **init,
        )
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        self.layers = nnx.List(
            [
                layers.Layer(
                    layers.MSSA(
                        c.dim, c.heads, c.head_dim, output_bias=False, kernel_init=normal, **init
                    ),
                    layers.OvercompleteISTA(
                        c.dim,
                        step_size=c.step_size,
                        lambd=c.lambd,
                        ratio=c.overcomplete,
                        **init,
                    ),
                    dim=c.dim,
                    epsilon=c.epsilon,
                    skip=True,
                    rngs=rngs,
                )
                for _ in range(c.depth)
            ]
        )
        self.head_norm = layers.layer_norm(c.dim, c.head_epsilon, rngs) if c.classes else None
        self.head = (
            layers.linear(c.dim, c.classes, kernel_init=normal, bias_init=zeros, **init)
            if c.classes
            else None
        )

    def embed(self, images: jax.Array) -> jax.Array:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(layers.patchify(images, self.config.patch_size))

    def pool(self, z: jax.Array) -> jax.Array:
        """[CLS], or the mean over all tokens (an option of ours; the authors pool by [CLS])."""
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [b, d] -> logits [b, classes]."""
        return features if self.head is None else self.head(self.head_norm(features))
