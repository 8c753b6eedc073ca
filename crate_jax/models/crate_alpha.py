"""CRATE-alpha (2405.20299): an overcomplete dictionary and a skip make CRATE scale."""

import dataclasses
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crate_jax.models.base import Computation, ImageModelConfig, Transformer, described
from crate_jax.models.layers import MSSA, Layer, Tokens
from crate_jax.models.linear import kaiming_uniform, linear
from crate_jax.models.norm import LayerNorm
from crate_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateAlphaConfig(ImageModelConfig):
    """What a CRATE-alpha is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate_alpha"

    overcomplete: int = described(4, "columns of D per dimension")
    step_size: float = described(0.1, "eta")
    lambd: float = described(0.1, "lambda")
    epsilon: float = described(1e-6, "of the LayerNorms in the layers")
    # 1e-5 in the authors' PyTorch class, 1e-6 in their JAX code.
    head_epsilon: float = described(1e-5, "of the LayerNorm before the head")
    # The authors' JAX class has it then too, their PyTorch class does not.
    full_width_output: bool = described(False, "MSSA's output map where one head is as wide as z")

    def __post_init__(self):
        super().__post_init__()
        self.expect_whole("overcomplete")
        self.expect_finite("step_size", "lambd")
        self.expect_finite("head_epsilon", above=True)


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
        dtype: DTypeLike = jnp.float32,
        ratio: int = 4,
    ):
        self.step_size, self.lambd, self.dtype = step_size, lambd, dtype
        shape = (dim, ratio * dim)
        self.dictionary = nnx.Param(kaiming_uniform(rngs.params(), shape, jnp.float32))
        self.output_dictionary = nnx.Param(kaiming_uniform(rngs.params(), shape, jnp.float32))

    def __call__(self, x: Tokens) -> Tokens:
        """x [b, tokens, d], normalised -> its reconstruction from sparse codes [b, tokens, d]."""
        x = x.astype(self.dtype)
        dictionary = self.dictionary[...].astype(self.dtype)
        threshold = self.step_size * self.lambd
        codes = jax.nn.relu(self.step_size * (x @ dictionary) - threshold)
        gradient = (codes @ dictionary.T - x) @ dictionary
        codes = jax.nn.relu(codes - self.step_size * gradient - threshold)
        return codes @ self.output_dictionary[...].astype(self.dtype).T


class CrateAlpha(Transformer[CrateAlphaConfig]):
    """Convolutional patch embedding with bias, MSSA and overcomplete ISTA with skips, LN + Linear.

    MSSA has no output bias. The patches are not normalised. Initialisation follows the authors'
    JAX code: U, the output map, positions and the head N(0, 0.02), the patch embedding
    kaiming-uniform, [CLS] N(0, 1e-6), biases zero.
    """

    def __init__(
        self, config: CrateAlphaConfig, *, rngs: nnx.Rngs, **computation: Unpack[Computation]
    ):
        super().__init__(config, **computation)
        c, dtype = config, self.dtype
        normal, zeros = jax.nn.initializers.normal(0.02), nnx.initializers.zeros_init()
        self.patch_embed = linear(
            3 * c.patch_size**2,
            c.dim,
            rngs=rngs,
            dtype=dtype,
            kernel_init=kaiming_uniform,
            bias_init=zeros,
        )
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + c.patches, c.dim)))
        self.layers = nnx.List([self._layer(rngs, normal) for _ in range(c.depth)])
        self.head_norm = LayerNorm(c.dim, c.head_epsilon) if c.classes else None
        self.head = (
            linear(c.dim, c.classes, rngs=rngs, dtype=dtype, kernel_init=normal, bias_init=zeros)
            if c.classes
            else None
        )

    def _layer(self, rngs: nnx.Rngs, kernel_init: Initializer) -> Layer:
        c, dtype = self.config, self.dtype
        attention = MSSA(
            c.dim,
            c.heads,
            c.head_dim,
            rngs=rngs,
            output_bias=False,
            full_width_output=c.full_width_output,
            backend=self.attention_backend,
            dtype=dtype,
            kernel_init=kernel_init,
        )
        operator = OvercompleteISTA(
            c.dim,
            step_size=c.step_size,
            lambd=c.lambd,
            rngs=rngs,
            dtype=dtype,
            ratio=c.overcomplete,
        )
        return Layer(attention, operator, dim=c.dim, epsilon=c.epsilon, skip=True)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(patchify(images, self.config.patch_size))

    def pool(self, z: Tokens) -> Float[Array, "b d"]:
        """[CLS], or the mean over all tokens (an option of ours; the authors pool by [CLS])."""
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features [b, d] -> logits [b, classes]."""
        if self.head is None or self.head_norm is None:
            return features
        return self.head(self.head_norm(features))
