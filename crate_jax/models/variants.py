"""The named sizes of the papers, and the one place that turns a config into a network.

"S" is 576 wide in 2306.01129 (patch 16) and 384 wide in 2308.16271 (patch 8): two networks.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Unpack

import jax
from flax import nnx

from crate_jax.models.base import Computation, ImageModelConfig, Transformer
from crate_jax.models.crate import Crate, CrateConfig
from crate_jax.models.crate_alpha import CrateAlpha, CrateAlphaConfig
from crate_jax.models.crate_mae import CrateMAE, CrateMAEConfig
from crate_jax.models.dino import DinoV3, DinoV3Config, dinov2
from crate_jax.models.vit import ViT, ViTConfig

_Count = TypeVar("_Count", int, float)
FAMILIES: dict[str, tuple[type[ImageModelConfig], Callable[..., Transformer]]] = {
    "crate": (CrateConfig, Crate),
    "crate_alpha": (CrateAlphaConfig, CrateAlpha),
    "crate_mae": (CrateMAEConfig, CrateMAE),
    "vit": (ViTConfig, ViT),
    "dinov3": (DinoV3Config, DinoV3),
}


def _table() -> dict[str, ImageModelConfig]:
    table: dict[str, ImageModelConfig] = {}
    # 2306.01129, table 5: ImageNet-1k.
    for size, dim, heads, depth in (
        ("t", 384, 6, 12),
        ("s", 576, 12, 12),
        ("b", 768, 12, 12),
        ("l", 1024, 16, 24),
    ):
        table[f"crate-{size}16"] = CrateConfig(dim=dim, heads=heads, depth=depth, patch_size=16)
    # 2308.16271: ImageNet-21k, 21,841 classes.
    for size, dim, heads in (("t", 192, 3), ("s", 384, 6), ("b", 768, 12)):
        table[f"crate-{size}8"] = CrateConfig(
            dim=dim, heads=heads, depth=12, patch_size=8, classes=21841
        )
    # The authors' ImageNet-21k definitions: one class more than the paper counts.
    for size in ("s", "b"):
        table[f"crate-{size}8-21k"] = dataclasses.replace(table[f"crate-{size}8"], classes=21842)
    # The released demo weights: B/8's backbone with 6 heads of 128, and a double head.
    table["crate-demo"] = CrateConfig(
        dim=768, heads=6, depth=12, patch_size=8, classes=21842, head_hidden=768
    )
    # The ablations of 2308.16271, all of size S/8.
    for name, fields in (
        ("mlp", {"nonlinearity": "mlp"}),
        ("mhsa", {"attention": "mhsa"}),
        ("sth", {"nonlinearity": "ista-soft-threshold"}),
    ):
        table[f"crate-{name}-s8"] = dataclasses.replace(table["crate-s8"], **fields)
    # 2405.20299.
    for size, dim, heads, depth, patches in (
        ("b", 768, 12, 12, (32, 16, 8)),
        ("l", 1024, 16, 24, (32, 14, 8)),
        ("h", 1280, 16, 32, (14,)),
    ):
        for patch in patches:
            table[f"crate-alpha-{size}{patch}"] = CrateAlphaConfig(
                dim=dim, heads=heads, depth=depth, patch_size=patch
            )
    # 2404.02446.
    for size, dim, heads, depth in (
        ("t", 384, 6, 12),
        ("s", 576, 12, 12),
        ("b", 768, 12, 12),
        ("l", 1024, 16, 24),
    ):
        table[f"crate-mae-{size}16"] = CrateMAEConfig(
            dim=dim, heads=heads, depth=depth, decoder_depth=depth, patch_size=16
        )
    for size, dim, heads, depth in (
        ("t", 192, 3, 12),
        ("s", 384, 6, 12),
        ("b", 768, 12, 12),
        ("l", 1024, 16, 24),
    ):
        for patch in (8, 14, 16, 32):
            table[f"vit-{size}{patch}"] = ViTConfig(
                dim=dim, heads=heads, depth=depth, patch_size=patch
            )
    table |= _dino()
    # For tests: seconds on a CPU.
    tiny: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 24, "heads": 3, "depth": 2}
    table["crate-testing"] = CrateConfig(**tiny, classes=10)
    table["crate-alpha-testing"] = CrateAlphaConfig(**tiny, classes=10)
    table["crate-mae-testing"] = CrateMAEConfig(**tiny, decoder_depth=2)
    table["vit-testing"] = ViTConfig(**tiny, classes=10)
    table["dinov3-testing"] = DinoV3Config(**tiny, registers=0, classes=10)
    return table


def _dino() -> dict[str, ImageModelConfig]:
    table: dict[str, ImageModelConfig] = {}
    gated: dict[str, Any] = {"ffn": "swiglu"}
    giant: dict[str, Any] = gated | {"mlp_ratio": 4096 / 1536}
    # 2304.07193, and with four registers 2309.16588.
    for size, dim, heads, depth, ffn in (
        ("s", 384, 6, 12, {}),
        ("b", 768, 12, 12, {}),
        ("l", 1024, 16, 24, {}),
        ("g", 1536, 24, 40, giant),
    ):
        table[f"dinov2-{size}14"] = dinov2(dim, heads, depth, **ffn)
        table[f"dinov2-{size}14-reg4"] = dinov2(dim, heads, depth, registers=4, **ffn)
    # 2502.10385: SimDINO is DINO's ViT itself, vit-b16 and vit-l16 without a head.
    for size, dim, heads, depth in (("b", 768, 12, 12), ("l", 1024, 16, 24)):
        table[f"simdinov2-{size}16"] = dinov2(
            dim, heads, depth, registers=4, patch_size=16, image_size=(224, 224)
        )
    # 2508.10104.
    for size, dim, heads, depth, ffn in (
        ("s16", 384, 6, 12, {}),
        ("s16plus", 384, 6, 12, gated),
        ("b16", 768, 12, 12, {}),
        ("l16", 1024, 16, 24, {}),
        ("l16plus", 1024, 16, 24, gated),
        ("h16plus", 1280, 20, 32, gated),
        ("7b16", 4096, 32, 40, gated | {"mlp_ratio": 2.0, "qkv_bias": False}),
    ):
        table[f"dinov3-{size}"] = DinoV3Config(dim=dim, heads=heads, depth=depth, **ffn)
    return table


VARIANTS: Mapping[str, ImageModelConfig] = types.MappingProxyType(_table())


def config(name: str, **overrides: Any) -> ImageModelConfig:
    """The config of a named size, with fields replaced.

    A given `heads` or `dim` makes head_dim follow, unless head_dim is given too.

    Raises:
        ValueError: for an unknown name (the message lists the known ones) or unknown fields.
    """
    if name not in VARIANTS:
        raise ValueError(f"model: expected one of {', '.join(VARIANTS)}, got {name!r}")
    values = VARIANTS[name].to_dict()
    if {"heads", "dim"} & set(overrides):
        values["head_dim"] = None
    return type(VARIANTS[name]).from_dict({**values, **overrides})


def from_dict(values: Mapping[str, Any]) -> ImageModelConfig:
    """The config that `to_dict` wrote, of whichever family it names."""
    family = values.get("family")
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    return FAMILIES[family][0].from_dict(values)


def build(
    config: ImageModelConfig, key: jax.Array | int = 0, **computation: Unpack[Computation]
) -> Transformer:
    """A network with freshly drawn weights.

    Args:
        config: one of `VARIANTS`, or any other instance of a family's config.
        key: the PRNG key or seed that the weights are drawn from.
        **computation: `dtype` (float32) and `remat` ("none"), see `base.Computation`.
    """
    model = FAMILIES[config.family][1]
    return model(config, rngs=nnx.Rngs(params=key), **computation)


class _OneKey(nnx.Rngs):
    """Keys where nothing is drawn, all of them one: counting keys is most of the cost."""

    def __init__(self):
        self.params = lambda: jax.random.key(0)


def abstract(config: ImageModelConfig, **computation: Unpack[Computation]) -> Transformer:
    """The network with shapes in place of weights: `base.split` it, `base.merge` with weights."""
    model = FAMILIES[config.family][1]
    return nnx.eval_shape(lambda: model(config, rngs=_OneKey(), **computation))


def count_parameters(config: ImageModelConfig) -> int:
    """The exact number of parameters, from shapes alone."""

    def count(network: ImageModelConfig) -> int:
        shapes = nnx.state(abstract(network), nnx.Param)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    return over_layers(config, count)


def over_layers(config: ImageModelConfig, count: Callable[[ImageModelConfig], _Count]) -> _Count:
    """A count that grows by the same with every layer, of a network of any depth.

    Layers are alike, so one and two of them tell any number, in a fraction of the tracing.
    """
    depths = [name for name in ("depth", "decoder_depth") if hasattr(config, name)]
    shallow = dataclasses.replace(config, **dict.fromkeys(depths, 1))
    total = single = count(shallow)
    for name in depths:
        more = count(dataclasses.replace(shallow, **{name: 2})) - single
        total += (getattr(config, name) - 1) * more
    return total
