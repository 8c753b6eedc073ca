"""The layouts of checkpoints that are known: one entry each, which is all that a layout needs.

A new one is a table of names (`names`), a function of shapes (`shapes`) and its entry here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crate_jax.convert import names, shapes, spellings
from crate_jax.convert.names import Row
from crate_jax.convert.shapes import Shapes
from crate_jax.models.base import ImageModelConfig
from crate_jax.models.crate import CrateConfig
from crate_jax.models.positions import sincos_positions


@dataclasses.dataclass(frozen=True)
class Layout:
    """How somebody's code names and shapes the tensors of a family.

    Attributes:
        family: of networks, as in `variants.FAMILIES`.
        naming: whose names: "pytorch" (the authors'), "flax", "torchvision", "transformers".
        signature: a pattern that a name of this layout matches, and none of those after it.
        facts: what the shapes tell of the config.
        rows: the table of names for a config.
        head: what names of the head begin with.
        unused: tensors that the authors' class has and nothing uses, by name, for a config:
            `strict=True` wants them. None for one that only some have.
        spelling: from the names of a file to those of the table.
    """

    family: str
    naming: str
    signature: str
    facts: Callable[[Shapes], dict[str, Any]]
    rows: Callable[[Any], tuple[Row, ...]]
    head: tuple[str, ...] = ()
    unused: Callable[[Any], dict[str, Any]] = lambda config: {}
    spelling: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda tensors: dict(tensors)


def _crate(config: CrateConfig) -> tuple[Row, ...]:
    return names.CRATE + (names.CRATE_DEMO_HEAD if config.head_hidden else names.CRATE_HEAD)


def _crate_mae_unused(config: ImageModelConfig) -> dict[str, Any]:
    return {
        "pos_embed": sincos_positions(config.grid, config.dim),
        "decoder_embed.weight": np.zeros((config.dim, config.dim), np.float32),
        "decoder_embed.bias": np.zeros(config.dim, np.float32),
    }


def _vit(config: Any) -> tuple[Row, ...]:
    after_pool = config.pool == "mean" and not config.norm_before_pool
    norm = names.VIT_MEAN_NORM if after_pool else names.VIT_NORM
    return names.VIT + norm + (names.VIT_MLP if config.ffn == "mlp" else names.DINOV2_GATED)


def _vit_unused(config: Any) -> dict[str, Any]:
    """DINOv2's token for masked patches, which only training uses; others' (iBOT, transformers)."""
    zeros = np.zeros((1, config.dim), np.float32) if config.layer_scale else None
    return {"mask_token": zeros, "masked_embed": None}


def _dinov3(config: Any) -> tuple[Row, ...]:
    return names.DINOV3 + (names.VIT_MLP if config.ffn == "mlp" else names.DINOV3_GATED)


def _dinov3_unused(config: Any) -> dict[str, Any]:
    """The mask token; the mask of biases, constant; the norm of local crops, where there is one."""
    unused: dict[str, Any] = {"mask_token": np.zeros((1, config.dim), np.float32)}
    unused |= {"local_cls_norm.weight": None, "local_cls_norm.bias": None}
    if config.qkv_bias:
        mask = np.repeat(np.array([1, 0, 1], np.float32), config.heads * config.head_dim)
        unused |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(config.depth)}
    return unused


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
        unused=_crate_mae_unused,
    ),
    Layout(
        "crate",
        "pytorch",
        r"to_patch_embedding\.|transformer\.layers\.\d+\.1\.fn\.",
        shapes.crate,
        _crate,
        head=("mlp_head.", "head."),
    ),
    Layout(
        "dinov3",
        "pytorch",
        r"rope_embed\.periods$|storage_tokens$",
        shapes.dinov3,
        _dinov3,
        head=("head.",),
        unused=_dinov3_unused,
    ),
    Layout(
        "vit",
        "pytorch",
        r"blocks\.(\d+\.)?\d+\.attn\.qkv\.",
        shapes.vit,
        _vit,
        head=("head.",),
        unused=_vit_unused,
        spelling=spellings.dino,
    ),
    Layout(
        "vit",
        "torchvision",
        r"encoder\.layers\.encoder_layer_\d+\.self_attention\.",
        shapes.vit,
        _vit,
        head=("head.",),
        unused=_vit_unused,
        spelling=spellings.torchvision,
    ),
    Layout(
        "dinov3",
        "transformers",
        r"layer\.\d+\.attention\.",
        shapes.dinov3,
        _dinov3,
        head=("head.",),
        unused=_dinov3_unused,
        spelling=spellings.transformers_dinov3,
    ),
    Layout(
        "vit",
        "transformers",
        r"(encoder\.layer|layers)\.\d+\.attention\.",
        shapes.transformers_vit,
        _vit,
        head=("head.",),
        unused=_vit_unused,
        spelling=spellings.transformers,
    ),
)


def of(family: str, naming: str) -> Layout:
    """The layout of a family in somebody's names."""
    return next(known for known in LAYOUTS if (known.family, known.naming) == (family, naming))
