"""CRATE: every layer is one step of optimising sparse rate reduction.

MSSA compresses the tokens against learned subspaces, ISTA sparsifies them in a learned dictionary.
Sources: 2306.01129 (the model), 2308.16271 (the patch-8 sizes and the ablations), and the public
PyTorch code, whose deviations from the papers are followed and named in `layers`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models import layers
from crate_jax.models.base import ImageModelConfig, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateConfig(ImageModelConfig):
    """What a CRATE is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate"

    attention: layers.Attention = "mssa"  # "mhsa": untied query, key, value (CRATE-MHSA)
    nonlinearity: layers.Nonlinearity = "ista"  # "ista-soft-threshold" (CRATE-sth), "mlp"
    step_size: float = 0.1  # eta of ISTA
    lambd: float = 0.1  # lambda of ISTA
    # Whether the MLP of the ablation CRATE-MLP has a skip around it; no source settles it, and
    # without one an MLP layer has no path for the identity. ISTA never has one.
    mlp_skip: bool = True
    # The released demo model has LN + Linear(768, head_hidden) + Linear(head_hidden, classes).
    head_hidden: int | None = None
    epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        self.expect("attention", ("mssa", "mhsa"))
        self.expect("nonlinearity", ("ista", "ista-soft-threshold", "mlp"))


class Crate(Transformer):
    """LN(patch) -> Linear -> LN, [CLS] and positions, MSSA and ISTA layers, LN + Linear on [CLS].

    `Crate(config, rngs=nnx.Rngs(0))`; see `Transformer.__call__` for what a call returns.
    [CLS] and positions start from N(0, 1), linears as in PyTorch, D kaiming-uniform [code].
    """

    def __init__(
        self,
        config: CrateConfig,
        *,
        rngs: nnx.Rngs,
        dtype: layers.Dtype = jnp.float32,
        remat: str = "none",
    ):
        super().__init__(config, dtype=dtype, remat=remat)
        c, init = config, {"rngs": rngs, "dtype": dtype}
        patch_dim = 3 * c.patch_size**2
        self.patch_norm = layers.layer_norm(patch_dim, c.epsilon, rngs)
        self.patch_embed = layers.linear(patch_dim, c.dim, **init)
        self.embed_norm = layers.layer_norm(c.dim, c.epsilon, rngs)
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        self.layers = nnx.List([self._layer(rngs) for _ in range(c.depth)])
        hidden = c.head_hidden if c.classes else None
        self.head_norm = layers.layer_norm(c.dim, c.epsilon, rngs) if c.classes else None
        self.head_hidden = layers.linear(c.dim, hidden, **init) if hidden else None
        self.head = layers.linear(hidden or c.dim, c.classes, **init) if c.classes else None

    def _layer(self, rngs: nnx.Rngs) -> layers.Layer:
        c, init = self.config, {"rngs": rngs, "dtype": self.dtype}
        if c.attention == "mssa":
            attention = layers.MSSA(c.dim, c.heads, c.head_dim, **init)
        else:
            attention = layers.MHSA(c.dim, c.heads, c.head_dim, qkv_bias=False, **init)
        if c.nonlinearity == "mlp":
            operator, skip = layers.MLP(c.dim, **init), c.mlp_skip
        else:
            soft = c.nonlinearity == "ista-soft-threshold"
            operator = layers.ISTA(c.dim, step_size=c.step_size, lambd=c.lambd, soft=soft, **init)
            skip = False
        return layers.Layer(attention, operator, dim=c.dim, epsilon=c.epsilon, skip=skip, rngs=rngs)

    def embed(self, images: jax.Array) -> jax.Array:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        x = self.patch_norm(layers.patchify(images, self.config.patch_size))
        return self.embed_norm(self.patch_embed(x))

    def pool(self, z: jax.Array) -> jax.Array:
        """[CLS], or the mean over all tokens, [CLS] included, as the public code has it."""
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [b, d] -> logits [b, classes]."""
        if self.head is None:
            return features
        x = self.head_norm(features)
        return self.head(x if self.head_hidden is None else self.head_hidden(x))
