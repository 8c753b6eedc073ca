"""CRATE-MAE (2404.02446): a CRATE encoder and its reverse as a masked autoencoder."""

import dataclasses
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from crate_jax.models.base import (
    Capture,
    Computation,
    ImageModelConfig,
    Transformer,
    described,
)
from crate_jax.models.layers import (
    ISTA,
    MSSA,
    AttentionOperator,
    Heads,
    Layer,
    Tokens,
)
from crate_jax.models.linear import LinearOptions, kaiming_uniform, linear
from crate_jax.models.norm import LayerNorm
from crate_jax.models.patches import patch_grid, patchify
from crate_jax.models.positions import sincos_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateMAEConfig(ImageModelConfig):
    """What a CRATE-MAE is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate_mae"

    decoder_depth: int = described(12, "layers of the decoder")
    mask_ratio: float = described(0.75, "of the patches, hidden in training")
    step_size: float = described(0.1, "eta of ISTA")
    # Published files carry theirs in the name: `lmd5.0` needs 5.
    lambd: float = described(0.5, "lambda of ISTA")
    classes: int = described(0, "none: it reconstructs patches")
    epsilon: float = described(1e-5, "of the LayerNorms in the layers")
    norm_epsilon: float = described(1e-6, "of the norms after the encoder and after the decoder")

    def __post_init__(self):
        super().__post_init__()
        if self.classes:
            raise ValueError(
                f"classes: expected 0 for a masked autoencoder, got {self.classes}; it "
                "reconstructs patches and has no head"
            )
        self.expect_whole("decoder_depth")
        self.expect_finite("step_size", "lambd")
        self.expect_finite("norm_epsilon", above=True)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: expected 0 < mask_ratio < 1, got {self.mask_ratio}")


class DecoderLayer(nnx.Module):
    """CRATE-MAE's decoder layer (2404.02446): a = LN(z) A^T, then z = a - MSSA(LN a).

    It runs a CRATE layer backwards: A stands for the inverse of the sparsification, and the minus
    sign undoes the compression. A starts kaiming-uniform, as D does.
    """

    def __init__(
        self,
        attention: AttentionOperator,
        *,
        dim: int,
        epsilon: float,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.operator_norm = LayerNorm(dim, epsilon)
        self.operator = linear(
            dim, dim, rngs=rngs, dtype=dtype, bias=False, kernel_init=kaiming_uniform
        )
        self.attention_norm = LayerNorm(dim, epsilon)
        self.attention = attention

    def __call__(self, z: Tokens) -> tuple[Tokens, Heads, Heads]:
        """z [b, tokens, d] -> (next z, query, key)."""
        a = self.operator(self.operator_norm(z))
        update, query, key = self.attention(self.attention_norm(a))
        return a - update, query, key


class CrateMAE(Transformer[CrateMAEConfig]):
    """Patch embedding, fixed sine-cosine positions, CRATE layers, LN; decoder layers, LN, Linear.

    The encoder sees a learned mask token where a patch is hidden, so that both halves run on all
    tokens. `positions` are weights of the published files and so a parameter here, but no gradient
    reaches them: an optimiser with weight decay must leave what `fixed` names alone.
    Not kept from the public code: a second, unused table `pos_embed` and an unused linear map
    `decoder_embed` (conversion carries both). Linear maps start Xavier-uniform with zero bias, D
    and A kaiming-uniform, [CLS] and the mask token N(0, 0.02).
    """

    fixed: ClassVar[tuple[str, ...]] = ("positions",)

    def __init__(
        self, config: CrateMAEConfig, *, rngs: nnx.Rngs, **computation: Unpack[Computation]
    ):
        super().__init__(config, **computation)
        c, dtype = config, self.dtype
        xavier: LinearOptions = {
            "dtype": dtype,
            "kernel_init": nnx.initializers.xavier_uniform(),
            "bias_init": nnx.initializers.zeros_init(),
        }
        patch_dim = 3 * c.patch_size**2
        self.patch_embed = linear(
            patch_dim, c.dim, rngs=rngs, dtype=dtype, kernel_init=xavier["kernel_init"]
        )
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(jnp.asarray(sincos_positions(c.grid, c.dim)))

        def attention() -> MSSA:
            backend = self.attention_backend
            return MSSA(c.dim, c.heads, c.head_dim, rngs=rngs, backend=backend, **xavier)

        def layer() -> Layer:
            return Layer(
                attention(),
                ISTA(c.dim, step_size=c.step_size, lambd=c.lambd, rngs=rngs, dtype=dtype),
                dim=c.dim,
                epsilon=c.epsilon,
                skip=False,
            )

        def decoder_layer() -> DecoderLayer:
            return DecoderLayer(attention(), dim=c.dim, epsilon=c.epsilon, rngs=rngs, dtype=dtype)

        self.layers = nnx.List([layer() for _ in range(c.depth)])
        self.norm = LayerNorm(c.dim, c.norm_epsilon)
        self.decoder = nnx.List([decoder_layer() for _ in range(c.decoder_depth)])
        self.decoder_norm = LayerNorm(c.dim, c.norm_epsilon)
        self.decoder_head = linear(c.dim, patch_dim, rngs=rngs, **xavier)

    def __call__(
        self,
        images: Float[ArrayLike, "b h w 3"],
        capture: Capture = False,
        *,
        mask_noise: Float[ArrayLike, "b n"] | None = None,
    ) -> tuple[Float[Array, "b ..."], dict[str, Array]]:
        """Reconstruct masked patches, or, without noise, look at the unmasked encoder.

        Args:
            images: f32[b, h, w, 3], normalised; any multiple of the patch size.
            capture: as in `Transformer.__call__`; the encoder's layers, as they run here.
            mask_noise: f32[b, n], uniform in [0, 1). The int(n (1 - mask_ratio)) patches of
                smallest noise stay, the others are hidden. None hides nothing.

        Returns:
            With noise, (pred, out): pred f32[b, n, 3 p^2], patches in (row, column, channel) order,
            out["mask"] f32[b, n], 1 where hidden, and out["loss"] f32[], the mean squared error
            over hidden patches. Without noise, (features, out): the encoder as a headless model,
            which is what every visual analysis runs. out["features"] f32[b, d] is the normalised
            [CLS] (or mean token) of the encoder in both.

        Raises:
            ValueError: for shapes that the patch size does not divide, unknown layers, or noise of
                another shape than [b, n].
        """
        if mask_noise is None:
            return super().__call__(images, capture)
        images, mask_noise = jnp.asarray(images), jnp.asarray(mask_noise)
        patch_grid(images, self.config.patch_size)  # raises where it does not fit
        patches = patchify(images, self.config.patch_size)
        if mask_noise.shape != patches.shape[:2]:
            raise ValueError(
                f"mask_noise: expected one number for each patch, shape {patches.shape[:2]}, got "
                f"{mask_noise.shape}"
            )
        mask = self.mask(mask_noise)
        z, out = self.run(self.layers, self.tokens(images, mask), capture)
        out["features"] = self.pool(z).astype(jnp.float32)
        pred = self.reconstruct(self.norm(z))
        error = jnp.mean((pred - patches) ** 2, axis=-1)
        out["mask"], out["loss"] = mask, jnp.sum(error * mask) / jnp.sum(mask)
        return pred, out

    def mask(self, noise: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """Noise f32[b, n] -> f32[b, n]: 0 for the patches of smallest noise, 1 for hidden ones."""
        kept = int(noise.shape[1] * (1 - self.config.mask_ratio))
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        return (rank >= kept).astype(jnp.float32)

    def tokens(
        self, images: Float[Array, "b h w 3"], mask: Float[Array, "b n"] | None = None
    ) -> Tokens:
        """[b, h, w, 3] -> [b, 1+n, d] before layer 1, with the mask token where mask is 1."""
        grid = patch_grid(images, self.config.patch_size)
        x = self.embed(images)
        if mask is not None:
            x = jnp.where(mask[..., None] > 0, self.mask_token[...].astype(x.dtype), x)
        return self.with_positions(x, grid)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(patchify(images, self.config.patch_size))

    def pool(self, z: Tokens) -> Float[Array, "b d"]:
        """LN(z)[CLS], or the mean of LN(z) over all tokens."""
        z = self.norm(z)
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features, unchanged: there is no head."""
        return features

    def reconstruct(self, z: Tokens) -> Float[Array, "b n pixels"]:
        """Encoder output [b, 1+n, d], normalised -> patches f32[b, n, 3 p^2]."""
        z, _ = self.run(self.decoder, z.astype(self.dtype))
        return self.decoder_head(self.decoder_norm(z))[:, 1:].astype(jnp.float32)
