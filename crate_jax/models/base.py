"""What every network here shares: the fields of its config, and the forward pass."""

import abc
import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Self, TypedDict, TypeVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, UInt8

from crate_jax.models.backends import Backend
from crate_jax.models.capture import REMAT_POLICIES, Capture, LayerFunction, Remat, run_layers
from crate_jax.models.layers import Tokens
from crate_jax.models.names import RULES, Rule
from crate_jax.models.patches import patch_grid
from crate_jax.models.positions import resize_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The range of float32: its largest number, and its smallest that is not taken for zero.
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), 2.0**-126


def described(default: Any, meaning: str) -> Any:
    """A field of a config with its meaning, which `python -m crate_jax.keys` prints."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@no_type_check  # at run time: what is given, an int for a square, say, is converted or refused
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModelConfig:
    """Fields shared by the families. Everything that weights alone do not tell is here.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    family: ClassVar[str]
    takes_registers: ClassVar[bool] = False
    pools: ClassVar[tuple[str, ...]] = ("cls", "mean")

    image_size: tuple[int, int] = described(
        (224, 224), "px, (height, width) that the positions belong to"
    )
    patch_size: int = described(16, "px, side of a patch")
    dim: int = described(768, "of a token, d")
    depth: int = described(12, "layers")
    heads: int = described(12, "of attention")
    head_dim: int = described(None, "None: dim / heads")
    classes: int = described(1000, "0: no head; the features are returned as logits")
    pool: Literal["cls", "mean", "last_vit", "cls_mean"] = described(
        "cls",
        "what the head reads: cls, mean of tokens, last_vit (patches alone, models/pooling.py), or "
        "cls_mean (both side by side, as DINOv2's linear heads)",
    )
    positions: Rule = described(
        "size", f"how positions are resampled to another image size: {', '.join(RULES)}"
    )
    registers: int = described(0, "tokens between [CLS] and the patches; analyses leave them out")
    epsilon: float  # of every LayerNorm
    mean: tuple[float, float, float] = described(IMAGENET_MEAN, "of images scaled to [0, 1]")
    std: tuple[float, float, float] = described(IMAGENET_STD, "likewise")

    def __post_init__(self):
        size = self.image_size
        size = (size, size) if isinstance(size, int) else tuple(int(s) for s in size)
        object.__setattr__(self, "image_size", size)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        self.expect_whole("patch_size", "dim", "depth", "heads")
        self.expect_whole("classes", "registers", least=0)
        if self.registers and not self.takes_registers:
            raise ValueError(
                f"registers: expected 0, {self.family} has none, got {self.registers}; a network "
                "with register tokens is of another family"
            )
        self.expect_finite("epsilon", above=True)
        self.expect_finite("mean", most=1)  # of images in [0, 1]; others have 0 to 255 in mind
        self.expect_finite("std", least=1e-3, most=10)
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
        self.expect_whole("head_dim")
        self.expect("pool", self.pools)
        self.expect("positions", RULES)

    def expect(self, name: str, choices: tuple[str, ...]) -> None:
        """Raises ValueError unless the field is one of the choices."""
        if getattr(self, name) not in choices:
            raise ValueError(
                f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
            )

    def expect_whole(self, *names: str, least: int = 1) -> None:
        """Raises ValueError unless the fields are whole numbers of at least `least`."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(
                    f"{name}: expected a whole number of at least {least}, got {value}"
                )

    def expect_finite(
        self, *names: str, least: float = 0, above: bool = False, most: float = _LARGEST
    ) -> None:
        """Raises ValueError unless all numbers of the fields are in [least, most].

        Of float32, in which they are computed with: what it would take for infinite is refused, and
        with `above` (0) what it would take for zero.
        """
        bound = "above 0" if above else f"of at least {least:g}"
        bound += f" and at most {most:g}" if most < _LARGEST else " in float32"
        for name in names:
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if not (_SMALLEST if above else least) <= value <= most:  # NaN is not
                    raise ValueError(f"{name}: expected a finite number {bound}, got {value}")

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
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict` (lists become tuples).

        Raises:
            ValueError: names every field that is not one of this family's.
        """
        values = {k: v for k, v in values.items() if k != "family"}
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{cls.family}: unknown model fields {', '.join(unknown)}")
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fields)


class Computation(TypedDict, total=False):
    """How a network is computed; what it is, its config says."""

    dtype: DTypeLike  # of products and tokens; parameters, norms and softmax stay float32
    remat: Remat  # what the backward pass recomputes
    attention_backend: Backend  # what computes attention
    scan: bool  # one layer is compiled and looped over, with all layers' parameters stacked
    mesh: jax.sharding.AbstractMesh | None  # devices whose part of a batch a kernel of ours takes


Config = TypeVar("Config", bound=ImageModelConfig)


class Transformer(nnx.Module, Generic[Config]):
    """The forward pass that the families share.

    A family supplies the parameters declared here and the three steps around the layers: `embed`,
    `pool` and `classify`. `fixed` names the parameters that training must not change.
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    config: Config
    cls_token: nnx.Param  # [1, 1, d]
    positions: nnx.Param  # [1, 1 + config.patches, d], [CLS] first
    registers: nnx.Param | None = None  # [1, config.registers, d], which have no position
    layers: nnx.List  # of modules that map z to (z, query, key)

    def __init__(
        self,
        config: Config,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: Remat = "none",
        attention_backend: Backend = "xla",
        scan: bool = False,
        mesh: jax.sharding.AbstractMesh | None = None,
    ):
        if remat not in REMAT_POLICIES:
            raise ValueError(f"remat: expected one of {', '.join(REMAT_POLICIES)}, got {remat!r}")
        self.config = config
        self.dtype = dtype
        self.remat: Remat = remat
        self.attention_backend: Backend = attention_backend
        self.scan = scan
        self.mesh = mesh

    @abc.abstractmethod
    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """[b, h, w, 3] -> patch tokens [b, n, d], before positions."""

    @abc.abstractmethod
    def pool(self, z: Tokens) -> Float[Array, "b features"]:
        """Tokens after the last layer -> features, one vector an image."""

    @abc.abstractmethod
    def classify(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        """Features -> logits; without a head the features."""

    def preprocess(self, images: UInt8[ArrayLike, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
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
        mean, std = (
            jnp.broadcast_to(jnp.array(of_channels, jnp.float32), images.shape)
            for of_channels in (c.mean, c.std)
        )
        return (images.astype(jnp.float32) / 255 - mean) / std

    def __call__(
        self, images: Float[ArrayLike, "b h w 3"], capture: Capture = False
    ) -> tuple[Float[Array, "b ..."], dict[str, Array]]:
        """Logits, and what the analyses need.

        Args:
            images: f32[b, h, w, 3], normalised (see `preprocess`); h and w any multiples of the
                patch size, positions are resampled to them.
            capture: True for every layer, an index or several for those, False for none. B/8 at
                480 px, all layers, is 0.4 GB an image.

        Returns:
            (logits f32[b, classes], out) with out["features"] f32[b, d] before the head, and for
            the captured layers out["query"], out["key"] f32[layers, b, 1+n, heads, d_head] and
            out["tokens"] f32[layers, b, 1+n, d], after each layer. With registers, 1+n is 1+r+n:
            [CLS], the r = `config.registers` registers, the patches.

        Raises:
            ValueError: for shapes that the patch size does not divide, pixels that were not
                normalised, and unknown layers.
        """
        images = jnp.asarray(images)
        z = self.tokens(images)
        layers = self.on_grid(patch_grid(images, self.config.patch_size))
        z, out = self.run(layers, z, capture)
        features = self.pool(z).astype(jnp.float32)
        out["features"] = features
        return self.classify(features).astype(jnp.float32), out

    def on_grid(self, grid: tuple[int, int]) -> Sequence[LayerFunction]:
        """The layers, for tokens of a grid: it is theirs to know where positions are rotary."""
        del grid
        return self.layers

    def run(
        self, layers: Sequence[LayerFunction], z: Tokens, capture: Capture = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """`run_layers`, computed as this network is."""
        with contextlib.ExitStack() as entered:
            if self.mesh is not None:
                entered.enter_context(jax.sharding.use_abstract_mesh(self.mesh))
            return run_layers(layers, z, capture, self.remat, self.scan)

    def tokens(self, images: Float[Array, "b h w 3"]) -> Tokens:
        """[b, h, w, 3] -> [b, 1+r+n, d]: all tokens with their positions, before layer 1."""
        grid = patch_grid(images, self.config.patch_size)
        return self.with_positions(self.embed(images), grid)

    def with_positions(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Tokens:
        """Patch tokens [b, n, d] of a grid -> [b, 1+r+n, d], with [CLS], positions, registers."""
        cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        positions = self.positions[...]
        if "positions" in self.fixed:
            positions = jax.lax.stop_gradient(positions)
        positions = resize_positions(positions, self.config.grid, grid, self.config.positions)
        z = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
        z = (z.astype(positions.dtype) + positions).astype(self.dtype)
        return z if self.registers is None else insert_registers(z, self.registers[...])


def insert_registers(
    z: Tokens, registers: Float[Array, "1 r d"]
) -> Float[Array, "b more_tokens d"]:
    """[b, 1+n, d] -> [b, 1+r+n, d]: registers after [CLS], which have no position (2309.16588)."""
    registers = jnp.broadcast_to(registers.astype(z.dtype), (len(z), *registers.shape[1:]))
    return jnp.concatenate([z[:, :1], registers, z[:, 1:]], axis=1)


def split(model: Transformer) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model as (its static definition, its parameters as a pure nested dictionary).

    The functional boundary: everything that is jitted, sharded, saved or differentiated is the
    dictionary. `nnx.jit` on modules costs milliseconds of Python a call; this does not.
    """
    definition, state = nnx.split(model, nnx.Param)
    return definition, nnx.to_pure_dict(state)


def merge(definition: nnx.GraphDef, params: Mapping[str, Any]) -> Transformer:
    """The reverse of `split`; cheap enough to be called inside a jitted function.

    Layer numbers may be strings, as they are after a checkpoint was read without a template.
    """
    return nnx.merge(definition, _numbered(params))


def forward(
    definition: nnx.GraphDef, capture: Capture = False
) -> Callable[[Mapping[str, Any], Array], tuple[Array, dict[str, Array]]]:
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
