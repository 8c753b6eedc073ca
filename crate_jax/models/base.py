"""What every classifier here shares: the fields of its config and the forward pass."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models import layers
from crate_jax.models.positions import RULES, Rule, resize_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModelConfig:
    """Fields shared by the families. Everything that weights alone do not tell is here.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    family: ClassVar[str]

    image_size: tuple[int, int] = (224, 224)  # (height, width) that the positions belong to
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    head_dim: int | None = None  # None: dim / heads
    classes: int = 1000  # 0: no head; the features are returned as logits
    pool: Literal["cls", "mean"] = "cls"
    positions: Rule = "size"  # how positions are resampled to another image size
    epsilon: float  # of every LayerNorm
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of images scaled to [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        size = self.image_size
        size = (size, size) if isinstance(size, int) else tuple(int(s) for s in size)
        object.__setattr__(self, "image_size", size)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        for name in ("patch_size", "dim", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.classes < 0:
            raise ValueError(f"classes: expected at least 0 (no head), got {self.classes}")
        if len(size) != 2 or any(s <= 0 or s % self.patch_size for s in size):
            raise ValueError(
                f"image_size: expected multiples of patch_size {self.patch_size}, got {size}"
            )
        if self.head_dim is None:
            if self.dim % self.heads:
                raise ValueError(
                    f"heads: expected a divisor of dim {self.dim}, got {self.heads}; choose "
                    "another number of heads or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.dim // self.heads)
        self.expect("pool", ("cls", "mean"))
        self.expect("positions", RULES)

    def expect(self, name: str, choices: tuple[str, ...]) -> None:
        """Raises ValueError unless the field is one of the choices."""
        if getattr(self, name) not in choices:
            raise ValueError(
                f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """n, the number of patches at `image_size`."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary with the family's name; `variants.from_dict` reads it back."""
        return {"family": self.family, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageModelConfig":
        """The reverse of `to_dict` (lists become tuples).

        Raises:
            ValueError: names every field that is not one of this family's.
        """
        values = {k: v for k, v in values.items() if k != "family"}
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{cls.family}: unknown model fields {', '.join(unknown)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class Transformer(nnx.Module):
    """The forward pass that the families share; they supply `embed`, `pool` and `classify`.

    `fixed` names the parameters that training must not change.
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ImageModelConfig, *, dtype: layers.Dtype, remat: str = "none"):
        if remat not in layers.REMAT_POLICIES:
            raise ValueError(
                f"remat: expected one of {', '.join(layers.REMAT_POLICIES)}, got {remat!r}"
            )
        self.config, self.dtype, self.remat = config, dtype, remat

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8[b, h, w, 3] in [0, 255] -> f32[b, h, w, 3], scaled to [0, 1] and standardised.

        Raises:
            ValueError: for anything but uint8, since floats may be in either range, and for
                another number of channels than 3.
        """
        images = jnp.asarray(images)
        if images.dtype != jnp.uint8:
            raise ValueError(
                f"preprocess: expected uint8 images in [0, 255], got {images.dtype}; images that "
                "are already normalised go to the model directly"
            )
        if images.ndim < 3 or images.shape[-1] != 3:
            raise ValueError(
                f"preprocess: expected images [batch, height, width, 3], got shape {images.shape}; "
                "put the channels last, repeat a grey one, drop alpha"
            )
        c = self.config
        scaled = images.astype(jnp.float32) / 255
        return (scaled - jnp.array(c.mean, jnp.float32)) / jnp.array(c.std, jnp.float32)

    def __call__(
        self, images: jax.Array, capture: bool | int | tuple[int, ...] = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and what the analyses need.

        Args:
            images: f32[b, h, w, 3], normalised (see `preprocess`); h and w any multiples of the
                patch size, positions are resampled to them.
            capture: True for every layer, an index or several for those, False for none. B/8 at
                480 px, all layers, is 0.4 GB an image.

        Returns:
            (logits f32[b, classes], out) with out["features"] f32[b, d] before the head, and for
            the captured layers out["query"], out["key"] f32[layers, b, 1+n, heads, d_head] and
            out["tokens"] f32[layers, b, 1+n, d], after each layer.

        Raises:
            ValueError: for shapes that the patch size does not divide, pixels that were not
                normalised, and unknown layers.
        """
        z = self.tokens(jnp.asarray(images))
        z, out = layers.run_layers(self.layers, z, capture, self.remat)
        features = self.pool(z).astype(jnp.float32)
        out["features"] = features
        return self.classify(features).astype(jnp.float32), out

    def tokens(self, images: jax.Array) -> jax.Array:
        """[b, h, w, 3] -> [b, 1+n, d]: [CLS] and patches with their positions, before layer 1."""
        grid = layers.patch_grid(images, self.config.patch_size)
        return self.with_positions(self.embed(images), grid)

    def with_positions(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Patch tokens [b, n, d] of a grid -> [b, 1+n, d], with [CLS] and positions."""
        cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        positions = self.positions[...]
        if "positions" in self.fixed:
            positions = jax.lax.stop_gradient(positions)
        positions = resize_positions(positions, self.config.grid, grid, self.config.positions)
        return (jnp.concatenate([cls.astype(x.dtype), x], axis=1) + positions).astype(self.dtype)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model as (its static definition, its parameters as a pure nested dictionary).

    The functional boundary: everything that is jitted, sharded, saved or differentiated is the
    dictionary. `nnx.jit` on modules costs milliseconds of Python a call; this does not.
    """
    definition, state = nnx.split(model, nnx.Param)
    return definition, nnx.to_pure_dict(state)


def merge(definition: nnx.GraphDef, params: Mapping[str, Any]) -> nnx.Module:
    """The reverse of `split`; cheap enough to be called inside a jitted function.

    Layer numbers may be strings, as they are after a checkpoint was read without a template.
    """
    return nnx.merge(definition, _numbered(params))


def forward(
    definition: nnx.GraphDef, capture: bool | int | tuple[int, ...] = False
) -> Callable[[Mapping[str, Any], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
    """A function (params, images uint8[b, h, w, 3]) -> (logits, out), to be jitted.

    Args:
        definition: the static half of `split`.
        capture: the layers whose arrays `out` holds; see `Transformer.__call__`.
    """

    def run(params, images):
        model = merge(definition, params)
        return model(model.preprocess(images), capture=capture)

    return run


def _numbered(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    return {
        int(k) if isinstance(k, str) and k.isdigit() else k: _numbered(v) for k, v in params.items()
    }
