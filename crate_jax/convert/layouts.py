"""The layouts of checkpoints that are known: one entry each, which is all that a layout needs.

A new one is a table of names (`names`), a function of shapes (`shapes`) and its entry here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from crate_jax.convert import names, shapes
from crate_jax.convert.names import Row
from crate_jax.convert.shapes import Shapes
from crate_jax.models.base import ImageModelConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """How somebody's code names and shapes the tensors of a family.

    Attributes:
        family: of networks, as in `variants.FAMILIES`.
        naming: whose names: "pytorch", "flax".
        signature: a pattern that a name of this layout matches, and none of those after it.
        facts: what the shapes tell of the config.
        rows: the table of names for a config.
        head: what names of the head begin with.
        unused: tensors that the authors' class has and nothing uses; `strict=True` wants them.
    """

    family: str
    naming: str
    signature: str
    facts: Callable[[Shapes], dict[str, Any]]
    rows: Callable[[Any], tuple[Row, ...]]
    head: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def _crate(config: ImageModelConfig) -> tuple[Row, ...]:
    return names.CRATE + (names.CRATE_DEMO_HEAD if config.head_hidden else names.CRATE_HEAD)


def _vit(config: ImageModelConfig) -> tuple[Row, ...]:
    after_pool = config.pool == "mean" and not config.norm_before_pool
    return names.VIT + (names.VIT_MEAN_NORM if after_pool else names.VIT_NORM)


# CRATE-alpha before CRATE, since they share names.
LAYOUTS = (
    Layout(
        "crate_alpha",
        "flax",
        r"Transformer/encoderblock_\d+/OvercompleteISTABlock_0/",
        shapes.crate_alpha_flax,
        lambda config: names.CRATE_ALPHA_FLAX,
        head=("head/", "encoder_norm/"),
    ),
    Layout(
        "crate_alpha",
        "pytorch",
        r"transformer\.layers\.\d+\.1\.fn\.D1?$",
        shapes.crate_alpha,
        lambda config: names.CRATE_ALPHA,
        head=("mlp_head.",),
    ),
    Layout(
        "crate_mae",
        "pytorch",
        r"(decoder_)?blocks\.\d+\.layers\.0\.",
        shapes.crate_mae,
        lambda config: names.CRATE_MAE,
        unused=("pos_embed", "decoder_embed.weight", "decoder_embed.bias"),
    ),
    Layout(
        "crate",
        "pytorch",
        r"to_patch_embedding\.|transformer\.layers\.\d+\.1\.fn\.",
        shapes.crate,
        _crate,
        head=("mlp_head.", "head."),
    ),
    Layout("vit", "pytorch", r"blocks\.\d+\.attn\.qkv\.", shapes.vit, _vit, head=("head.",)),
)


def of(family: str, naming: str) -> Layout:
    """The layout of a family in somebody's names."""
    return next(known for known in LAYOUTS if (known.family, known.naming) == (family, naming))
