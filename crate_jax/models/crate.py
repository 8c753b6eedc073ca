"""CRATE: every layer is one step of optimising sparse rate reduction.

MSSA compresses the tokens against learned subspaces, ISTA sparsifies them in a learned dictionary.
Sources: 2306.01129 (the model), 2308.16271 (the patch-8 sizes and the ablations), and the public
PyTorch code, whose deviations from the papers are followed and named in `layers`.
"""

import dataclasses
from typing import ClassVar, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crate_jax.models import pooling
from crate_jax.models.base import Computation, ImageModelConfig, Transformer, described
from crate_jax.models.layers import ISTA, MSSA, Layer, Tokens
from crate_jax.models.linear import LinearOptions, linear
from crate_jax.models.norm import LayerNorm
from crate_jax.models.patches import patchify
from crate_jax.models.vit import MHSA, MLP

Attention = Literal["mssa", "mhsa"]
Nonlinearity = Literal["ista", "ista-soft-threshold", "mlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateConfig(ImageModelConfig):
    """What a CRATE is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate"
    pools: ClassVar[tuple[str, ...]] = ("cls", "mean", "last_vit")

    attention: Attention = described("mssa", "mhsa: untied query, key, value (CRATE-MHSA)")
    nonlinearity: Nonlinearity = described("ista", "ista-soft-threshold (CRATE-sth), mlp")
    step_size: float = described(0.1, "eta of ISTA")
    lambd: float = described(0.1, "lambda of ISTA")
    # No source settles it, and without one an MLP layer has no path for the identity. ISTA never
    # has one.
    mlp_skip: bool = described(True, "a skip around the MLP of the ablation CRATE-MLP")
    # The released demo model has LN + Linear(768, head_hidden) + Linear(head_hidden, classes).
    head_hidden: int | None = described(None, "width of a second linear map in the head")
    epsilon: float = described(1e-5, "of every LayerNorm")

    def __post_init__(self):
        super().__post_init__()
        self.expect("attention", get_args(Attention))
        self.expect("nonlinearity", get_args(Nonlinearity))
        self.expect_finite("step_size", "lambd")
        if self.head_hidden is not None:
            self.expect_whole("head_hidden")


class Crate(Transformer[CrateConfig]):
    """LN(patch) -> Linear -> LN, [CLS] and positions, MSSA and ISTA layers, LN + Linear on [CLS].

    `Crate(config, rngs=nnx.Rngs(0))`; see `Transformer.__call__` for what a call returns.
    [CLS] and positions start from N(0, 1), linears as in PyTorch, D kaiming-uniform [code].
    """

    def __init__(self, config: CrateConfig, *, rngs: nnx.Rngs, **computation: Unpack[Computation]):
        super().__init__(config, **computation)
        c = config
        init: LinearOptions = {"dtype": self.dtype}
        patch_dim = 3 * c.patch_size**2
        self.patch_norm = LayerNorm(patch_dim, c.epsilon)
        self.patch_embed = linear(patch_dim, c.dim, rngs=rngs, **init)
        self.embed_norm = LayerNorm(c.dim, c.epsilon)
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        self.layers = nnx.List([self._layer(rngs) for _ in range(c.depth)])
        hidden = c.head_hidden if c.classes else None
        self.head_norm = LayerNorm(c.dim, c.epsilon) if c.classes else None
        self.head_hidden = linear(c.dim, hidden, rngs=rngs, **init) if hidden else None
        self.head = linear(hidden or c.dim, c.classes, rngs=rngs, **init) if c.classes else None

    def _layer(self, rngs: nnx.Rngs) -> Layer:
        c, dtype = self.config, self.dtype
        heads, backend = (c.dim, c.heads, c.head_dim), self.attention_backend
        if c.attention == "mssa":
            attention = MSSA(*heads, rngs=rngs, backend=backend, dtype=dtype)
        else:
            attention = MHSA(*heads, rngs=rngs, qkv_bias=False, backend=backend, dtype=dtype)
        if c.nonlinearity == "mlp":
            operator, skip = MLP(c.dim, rngs=rngs, dtype=dtype), c.mlp_skip
        else:
            operator = ISTA(
                c.dim,
                step_size=c.step_size,
                lambd=c.lambd,
                rngs=rngs,
                dtype=dtype,
                soft=c.nonlinearity == "ista-soft-threshold",
            )
            skip = False
        return Layer(attention, operator, dim=c.dim, epsilon=c.epsilon, skip=skip)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        x = self.patch_norm(patchify(images, self.config.patch_size))
        return self.embed_norm(self.patch_embed(x))

    def pool(self, z: Tokens) -> Float[Array, "b d"]:
        """[CLS], or the mean over all tokens, [CLS] included, as the public code has it.

        LaSt-ViT's pooling stands behind the head's LayerNorm, as in a ViT, and not before it.
        """
        if self.config.pool == "last_vit":
            patches = z[:, 1:]
            return pooling.last_vit(patches if self.head_norm is None else self.head_norm(patches))
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features [b, d] -> logits [b, classes]."""
        if self.head is None or self.head_norm is None:
            return features
        x = features if self.config.pool == "last_vit" else self.head_norm(features)
        return self.head(x if self.head_hidden is None else self.head_hidden(x))
