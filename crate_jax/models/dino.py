"""DINOv2 and DINOv3: the self-supervised networks whose dense features people compare with.

DINOv2 (2304.07193, its code) is `vit.ViT` with patches of 14 px, LayerScale and, since 2309.16588,
registers; its giant has a gated FFN. DINOv3 (2508.10104, its code) has no stored positions: query
and key of the patches are rotated by where they are, on whatever grid, in every layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from crate_jax.models.base import (
    Capture,
    Computation,
    ImageModelConfig,
    Transformer,
    described,
    insert_registers,
)
from crate_jax.models.layers import Tokens
from crate_jax.models.linear import LinearOptions, linear
from crate_jax.models.norm import LayerNorm
from crate_jax.models.patches import patch_grid, patchify
from crate_jax.models.vit import FFN, MHSA, OPERATORS, ScaledLayer, ViTConfig


def dinov2(dim: int, heads: int, depth: int, registers: int = 0, **fields: Any) -> ViTConfig:
    """A DINOv2: positions of 518 px, by DINO's rule, with antialiasing where it has registers."""
    given: dict[str, Any] = {
        "image_size": (518, 518),
        "patch_size": 14,
        "classes": 0,
        "layer_scale": True,
        "positions": "antialias" if registers else "dino",
        **fields,
    }
    return ViTConfig(dim=dim, heads=heads, depth=depth, registers=registers, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoV3Config(ImageModelConfig):
    """What a DINOv3 is; see `ImageModelConfig` for the shared fields."""

    family: ClassVar[str] = "dinov3"
    takes_registers: ClassVar[bool] = True

    image_size: tuple[int, int] = described((256, 256), "px, (height, width) of training")
    classes: int = described(0, "0: no head; the features are returned as logits")
    registers: int = described(4, "tokens between [CLS] and the patches; analyses leave them out")
    ffn: FFN = described("mlp", "second operator of a layer: mlp, or swiglu, which is gated")
    mlp_ratio: float = described(4.0, "inner width of that operator by dim")
    qkv_bias: bool = described(True, "a bias in query and value; the key has none")
    cls_norm: bool = described(False, "a last norm of their own for [CLS] and registers")
    rope_base: float = described(100.0, "largest period of the rotary positions, about")
    epsilon: float = described(1e-5, "of every LayerNorm")

    def __post_init__(self):
        super().__post_init__()
        self.expect("ffn", get_args(FFN))
        self.expect_finite("mlp_ratio", least=1 / self.dim)  # at least one hidden unit
        self.expect_finite("rope_base", above=True)
        if self.head_dim % 4:
            raise ValueError(
                f"head_dim: expected a multiple of 4, for rotary positions on two axes, got "
                f"{self.head_dim}"
            )
        if self.positions != "size":
            raise ValueError(
                f"positions: dinov3 resamples none, it computes rotary ones for every grid, got "
                f"{self.positions!r}; leave it out"
            )


def periods(head_dim: int, base: float) -> Float[Array, " quarter"]:
    """P_m = base^(2 m / (d_head / 2)), m = 0 .. d_head / 4 - 1, in halves of an image's side."""
    exponent = 2 * jnp.arange(head_dim // 4, dtype=jnp.float32) / (head_dim // 2)
    return jnp.asarray(base, jnp.float32) ** exponent


def rotation(
    grid: tuple[int, int], periods: Float[Array, " quarter"]
) -> tuple[Float[Array, "n d_head"], Float[Array, "n d_head"]]:
    """(cos, sin) of every patch's angles: 2 pi y / P, 2 pi x / P, and the same again.

    y and x are the centres of the patches, each axis of the image from -1 to 1 whatever its aspect.
    """
    centres = [(2 * jnp.arange(n, dtype=jnp.float32) + 1) / n - 1 for n in grid]
    place = jnp.stack(jnp.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = 2 * jnp.pi * place[:, :, None] / periods[None, None].astype(jnp.float32)
    angles = jnp.tile(angles.reshape(len(place), -1), 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "*batch tokens heads d_head"],
    cos: Float[Array, "n d_head"],
    sin: Float[Array, "n d_head"],
) -> Float[Array, "*batch tokens heads d_head"]:
    """x cos + [-second half, first half of x] sin for the last n tokens, in float32.

    [CLS] and registers, which come first, stay as they are. With -sin it is its own inverse.
    """
    prefix = x.shape[-3] - len(cos)
    patches = x[..., prefix:, :, :].astype(jnp.float32)
    first, second = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    cos, sin = (t.reshape((1,) * (x.ndim - 3) + (len(t), 1, -1)) for t in (cos, sin))
    patches = patches * cos + turned * sin
    return jnp.concatenate([x[..., :prefix, :, :], patches.astype(x.dtype)], axis=-3)


class KeylessBias(MHSA):
    """Multi-head self-attention with a bias in query and value, and none in the key.

    The authors store one for the key too and multiply it by a mask of zeros.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[LinearOptions],
    ):
        super().__init__(dim, heads, head_dim, rngs=rngs, qkv_bias=False, **options)
        self.bias = nnx.Param(jnp.zeros(2 * heads * head_dim))

    def project(self, x: Tokens) -> Float[Array, "b tokens qkv"]:
        """x [b, tokens, d] -> query, key, value of all heads, side by side."""
        projected = self.qkv(x)
        query, value = jnp.split(self.bias[...].astype(projected.dtype), 2)
        return projected + jnp.concatenate([query, jnp.zeros_like(query), value])[None, None]


class DinoV3(Transformer[DinoV3Config]):
    """Patch embedding, [CLS], registers; layers with rotary positions and LayerScale; LN.

    Features are LN(z)[CLS], or with `pool="mean"` the mean of LN(z) over the patches. `periods` are
    weights of the published files, which hold them rounded, and so a parameter here, but no
    gradient reaches them. Deviations from the authors' training: positions are neither shifted,
    jittered nor rescaled, and no patch is masked.
    """

    fixed: ClassVar[tuple[str, ...]] = ("periods",)

    def __init__(self, config: DinoV3Config, *, rngs: nnx.Rngs, **computation: Unpack[Computation]):
        super().__init__(config, **computation)
        c = config
        normal = jax.nn.initializers.truncated_normal(0.02)
        init: LinearOptions = {
            "dtype": self.dtype,
            "kernel_init": normal,
            "bias_init": nnx.initializers.zeros_init(),
        }
        self.patch_embed = linear(3 * c.patch_size**2, c.dim, rngs=rngs, dtype=self.dtype)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, c.dim)))
        if c.registers:
            self.registers = nnx.Param(normal(rngs.params(), (1, c.registers, c.dim)))
        self.periods = nnx.Param(periods(c.head_dim, c.rope_base))
        self.layers = nnx.List([self._layer(rngs, init) for _ in range(c.depth)])
        self.norm = LayerNorm(c.dim, c.epsilon)
        self.cls_norm = LayerNorm(c.dim, c.epsilon) if c.cls_norm else None
        self.head = linear(c.dim, c.classes, rngs=rngs, **init) if c.classes else None

    def _layer(self, rngs: nnx.Rngs, init: LinearOptions) -> ScaledLayer:
        c = self.config
        if c.qkv_bias:
            attention = KeylessBias(c.dim, c.heads, c.head_dim, rngs=rngs, **init)
        else:
            attention = MHSA(c.dim, c.heads, c.head_dim, rngs=rngs, qkv_bias=False, **init)
        operator = OPERATORS[c.ffn](c.dim, rngs=rngs, ratio=c.mlp_ratio, **init)
        return ScaledLayer(attention, operator, dim=c.dim, epsilon=c.epsilon)

    def __call__(
        self, images: Float[ArrayLike, "b h w 3"], capture: Capture = False
    ) -> tuple[Float[Array, "b ..."], dict[str, Array]]:
        """As `Transformer.__call__`; query and key are as attention uses them, rotated.

        Captured layers have out["key_unrotated"] too, of the shape of out["key"]: rotated keys of
        near patches are alike because they are near, which methods on graphs of keys must not see.
        """
        images = jnp.asarray(images)
        logits, out = super().__call__(images, capture)
        if "key" in out:
            cos, sin = self._rotation(patch_grid(images, self.config.patch_size))
            out["key_unrotated"] = rotate(out["key"], cos, -sin)
        return logits, out

    def _rotation(self, grid: tuple[int, int]) -> tuple[Array, Array]:
        return rotation(grid, jax.lax.stop_gradient(self.periods[...]))

    def on_grid(self, grid: tuple[int, int]) -> Sequence[Callable[[Tokens], Any]]:
        """The layers with the rotation of a grid's patches."""
        cos, sin = self._rotation(grid)
        turn = functools.partial(rotate, cos=cos, sin=sin)
        return [lambda z, layer=layer: layer(z, turn) for layer in self.layers]

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d]."""
        return self.patch_embed(patchify(images, self.config.patch_size))

    def with_positions(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Tokens:
        """Patch tokens [b, n, d] -> [b, 1+r+n, d]: positions come in the layers."""
        del grid
        cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        z = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
        return z if self.registers is None else insert_registers(z, self.registers[...])

    def normalise(self, z: Tokens) -> Tokens:
        """LN(z) of all tokens, [CLS] and registers by a norm of their own where there is one."""
        if self.cls_norm is None:
            return self.norm(z)
        prefix = 1 + self.config.registers
        return jnp.concatenate([self.cls_norm(z[:, :prefix]), self.norm(z[:, prefix:])], axis=1)

    def pool(self, z: Tokens) -> Float[Array, "b d"]:
        """LN(z)[CLS], or the mean of LN(z) over the patches."""
        if self.config.pool == "cls":
            return self.normalise(z)[:, 0]
        return jnp.mean(self.normalise(z)[:, 1 + self.config.registers :], axis=1)

    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features [b, d] -> logits [b, classes]."""
        return features if self.head is None else self.head(features)
