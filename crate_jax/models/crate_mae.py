"""CRATE-MAE (2404.02446): a CRATE encoder and its reverse as a masked autoencoder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models import layers
from crate_jax.models.base import ImageModelConfig, Transformer
from crate_jax.models.positions import sincos_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrateMAEConfig(ImageModelConfig):
    """What a CRATE-MAE is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "crate_mae"

    decoder_depth: int = 12
    mask_ratio: float = 0.75
    step_size: float = 0.1  # eta of ISTA
    # lambda of ISTA. Published files carry theirs in the name: `lmd5.0` needs 5.
    lambd: float = 0.5
    classes: int = 0
    epsilon: float = 1e-5  # of the LayerNorms in the layers
    norm_epsilon: float = 1e-6  # of the norms after the encoder and after the decoder

    def __post_init__(self):
        super().__post_init__()
        if self.classes:
            raise ValueError(
                f"classes: expected 0 for a masked autoencoder, got {self.classes}; it "
                "reconstructs patches and has no head"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: expected 0 < mask_ratio < 1, got {self.mask_ratio}")


class CrateMAE(Transformer):
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
        self,
        config: CrateMAEConfig,
        *,
        rngs: nnx.Rngs,
        dtype: layers.Dtype = jnp.float32,
        remat: str = "none",
    ):
        super().__init__(config, dtype=dtype, remat=remat)
        c, init = config, {"rngs": rngs, "dtype": dtype}
        xavier = {
            "kernel_init": nnx.initializers.xavier_uniform(),
            "bias_init": nnx.initializers.zeros_init(),
        }
        patch_dim = 3 * c.patch_size**2
        self.patch_embed = layers.linear(
            patch_dim, c.dim, kernel_init=nnx.initializers.xavier_uniform(), **init
        )
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.dim)))
        self.positions = nnx.Param(jnp.asarray(sincos_positions(c.grid, c.dim)))

        def attention():
            return layers.MSSA(c.dim, c.heads, c.head_dim, **xavier, **init)

        def ista():
            return layers.ISTA(c.dim, step_size=c.step_size, lambd=c.lambd, **init)

        norms = {"dim": c.dim, "epsilon": c.epsilon, "rngs": rngs}
        self.layers = nnx.List(
            [layers.Layer(attention(), ista(), skip=False, **norms) for _ in range(c.depth)]
        )
        self.norm = layers.layer_norm(c.dim, c.norm_epsilon, rngs)
        self.decoder = nnx.List(
            [layers.DecoderLayer(attention(), dtype=dtype, **norms) for _ in range(c.decoder_depth)]
        )
        self.decoder_norm = layers.layer_norm(c.dim, c.norm_epsilon, rngs)
        self.decoder_head = layers.linear(c.dim, patch_dim, **xavier, **init)

    def __call__(
        self,
        images: jax.Array,
        capture: bool | int | tuple[int, ...] = False,
        *,
        mask_noise: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
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
        layers.patch_grid(images, self.config.patch_size)  # raises where it does not fit
        patches = layers.patchify(images, self.config.patch_size)
        if mask_noise.shape != patches.shape[:2]:
            raise ValueError(
                f"mask_noise: expected one number for each patch, shape {patches.shape[:2]}, got "
                f"{mask_noise.shape}"
            )
        mask = self.mask(mask_noise)
        z, out = layers.run_layers(self.layers, self.tokens(images, mask), capture, self.remat)
        out["features"] = self.pool(z).astype(jnp.float32)
        pred = self.reconstruct(self.norm(z))
        error = jnp.mean((pred - patches) ** 2, axis=-1)
        out["mask"], out["loss"] = mask, jnp.sum(error * mask) / jnp.sum(mask)
        return pred, out

    def mask(self, noise: jax.Array) -> jax.Array:
        """Noise f32[b, n] -> f32[b, n]: 0 for the patches of smallest noise, 1 for hidden ones."""
        kept = int(noise.shape[1] * (1 - self.config.mask_ratio))
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        return (rank >= kept).astype(jnp.float32)

    def tokens(self, images: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[b, h, w, 3] -> [b, 1+n, d] before layer 1, with the mask token where mask is 1."""
        grid = layers.patch_grid(images, self.config.patch_size)
        x = self.embed(images)
        if mask is not None:
            x = jnp.where(mask[..., None] > 0, self.mask_token[...].astype(x.dtype), x)
        return self.with_positions(x, grid)

    def embed(self, images: jax.Array) -> jax.Array:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(layers.patchify(images, self.config.patch_size))

    def pool(self, z: jax.Array) -> jax.Array:
        """LN(z)[CLS], or the mean of LN(z) over all tokens."""
        z = self.norm(z)
        return z[:, 0] if self.config.pool == "cls" else jnp.mean(z, axis=1, dtype=jnp.float32)

    def classify(self, features: jax.Array) -> jax.Array:
        """Features, unchanged: there is no head."""
        return features

    def reconstruct(self, z: jax.Array) -> jax.Array:
        """Encoder output [b, 1+n, d], normalised -> patches f32[b, n, 3 p^2]."""
        z, _ = layers.run_layers(self.decoder, z.astype(self.dtype), False, self.remat)
        return self.decoder_head(self.decoder_norm(z))[:, 1:].astype(jnp.float32)
