"""Tensor names: the authors' on one side, ours on the other, a table for each layout.

A row says what a tensor is called in a file, where it is in our parameters ("/" separates levels,
`{i}` counts layers) and how it is transformed. A transform is an exact permutation of numbers, so
whatever goes in comes out bit for bit. Which rows apply is decided by the network itself: those
whose parameter it has.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from crate_jax.models import dino
from crate_jax.models.base import ImageModelConfig


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor of a file is laid out: `ours(theirs, config)` and back."""

    ours: Callable[[np.ndarray, ImageModelConfig], np.ndarray]
    theirs: Callable[[np.ndarray, ImageModelConfig], np.ndarray]


SAME = Transform(lambda x, c: x, lambda x, c: x)
# torch.nn.Linear keeps (out, in).
LINEAR = Transform(lambda x, c: x.T, lambda x, c: x.T)
# torch.nn.Conv2d over patches: (d, channel, row, column); ours (row column channel, d).
CONV = Transform(
    lambda x, c: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, c: x.reshape(c.patch_size, c.patch_size, 3, -1).transpose(3, 2, 0, 1),
)
# flax: a convolution over patches, and maps to and from (heads, d_head).
FLAX_CONV = Transform(
    lambda x, c: x.reshape(-1, x.shape[-1]),
    lambda x, c: x.reshape(c.patch_size, c.patch_size, 3, -1),
)
TO_HEADS = Transform(
    lambda x, c: x.reshape(x.shape[0], -1), lambda x, c: x.reshape(x.shape[0], c.heads, -1)
)
FROM_HEADS = Transform(
    lambda x, c: x.reshape(-1, x.shape[-1]), lambda x, c: x.reshape(c.heads, -1, x.shape[-1])
)

# Halves of what we keep side by side: theirs are two tensors.
FIRST = Transform(lambda x, c: x.T, lambda x, c: np.split(x, 2, axis=-1)[0].T)
SECOND = Transform(lambda x, c: x.T, lambda x, c: np.split(x, 2, axis=-1)[1].T)


def _with_zeros(x: np.ndarray) -> np.ndarray:
    query, value = np.split(x, 2)
    return np.concatenate([query, np.zeros_like(query), value])


# DINOv3 keeps a bias of query, key and value, and multiplies the key's by zeros.
NO_KEY = Transform(
    lambda x, c: np.concatenate([part for i, part in enumerate(np.split(x, 3)) if i != 1]),
    lambda x, c: _with_zeros(x),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor: its name in the file, its path in our parameters, its transform.

    Tensors of one path are laid side by side, in the order of their rows.
    """

    theirs: str
    ours: str
    transform: Transform = SAME
    # What stands in where a file leaves the tensor out, for those that may.
    absent: Callable[[Any], Any] | None = None


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def _dense(theirs: str, ours: str, transform: Transform = LINEAR) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", transform), Row(
        f"{theirs}.bias", f"{ours}/bias"
    )


def _halves(first: str, second: str, ours: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{theirs}.{kind}", f"{ours}/{path}", half)
        for theirs, half in ((first, FIRST), (second, SECOND))
        for kind, path in (("weight", "kernel"), ("bias", "bias"))
    )


def _crate_layer(theirs: str, ours: str) -> tuple[Row, ...]:
    """A layer of the PyTorch CRATE, its ablations included.

    `fn.qkv` is U, or with untied maps query, key and value stacked; which of the two rows applies
    depends on the network. The MLP's names are those of the ViT from which CRATE's code descends.
    """
    return (
        *_norm(f"{theirs}.0.norm", f"{ours}/attention_norm"),
        Row(f"{theirs}.0.fn.qkv.weight", f"{ours}/attention/subspace/kernel", LINEAR),
        Row(f"{theirs}.0.fn.qkv.weight", f"{ours}/attention/qkv/kernel", LINEAR),
        *_dense(f"{theirs}.0.fn.to_out.0", f"{ours}/attention/output"),
        *_norm(f"{theirs}.1.norm", f"{ours}/operator_norm"),
        Row(f"{theirs}.1.fn.weight", f"{ours}/operator/dictionary"),
        *_dense(f"{theirs}.1.fn.net.0", f"{ours}/operator/expand"),
        *_dense(f"{theirs}.1.fn.net.3", f"{ours}/operator/contract"),
    )


CRATE = (
    Row("cls_token", "cls_token"),
    Row("pos_embedding", "positions"),
    *_norm("to_patch_embedding.1", "patch_norm"),
    *_dense("to_patch_embedding.2", "patch_embed"),
    *_norm("to_patch_embedding.3", "embed_norm"),
    *_crate_layer("transformer.layers.{i}", "layers/{i}"),
    *_norm("mlp_head.0", "head_norm"),
)
CRATE_HEAD = _dense("mlp_head.1", "head")
CRATE_DEMO_HEAD = (*_dense("mlp_head.1", "head_hidden"), *_dense("head", "head"))

CRATE_ALPHA = (
    Row("cls_token", "cls_token"),
    Row("pos_embedding", "positions"),
    *_dense("conv1", "patch_embed", CONV),
    *_norm("transformer.layers.{i}.0.norm", "layers/{i}/attention_norm"),
    Row("transformer.layers.{i}.0.fn.qkv.weight", "layers/{i}/attention/subspace/kernel", LINEAR),
    Row(
        "transformer.layers.{i}.0.fn.to_out.0.weight", "layers/{i}/attention/output/kernel", LINEAR
    ),
    *_norm("transformer.layers.{i}.1.norm", "layers/{i}/operator_norm"),
    Row("transformer.layers.{i}.1.fn.D", "layers/{i}/operator/dictionary"),
    Row("transformer.layers.{i}.1.fn.D1", "layers/{i}/operator/output_dictionary"),
    *_norm("mlp_head.0", "head_norm"),
    *_dense("mlp_head.1", "head"),
)


_BLOCK = "Transformer/encoderblock_{i}"
_SUBSPACE = f"{_BLOCK}/MultiHeadDotProductSubspaceAttention_0"
CRATE_ALPHA_FLAX = (
    Row("cls", "cls_token"),
    Row("pos_embedding", "positions"),
    Row("embedding/kernel", "patch_embed/kernel", FLAX_CONV),
    Row("embedding/bias", "patch_embed/bias"),
    Row(f"{_BLOCK}/LayerNorm_0/scale", "layers/{i}/attention_norm/scale"),
    Row(f"{_BLOCK}/LayerNorm_0/bias", "layers/{i}/attention_norm/bias"),
    Row(f"{_SUBSPACE}/proj/kernel", "layers/{i}/attention/subspace/kernel", TO_HEADS),
    Row(f"{_SUBSPACE}/out/kernel", "layers/{i}/attention/output/kernel", FROM_HEADS),
    Row(f"{_BLOCK}/LayerNorm_1/scale", "layers/{i}/operator_norm/scale"),
    Row(f"{_BLOCK}/LayerNorm_1/bias", "layers/{i}/operator_norm/bias"),
    Row(f"{_BLOCK}/OvercompleteISTABlock_0/D", "layers/{i}/operator/dictionary"),
    Row(f"{_BLOCK}/OvercompleteISTABlock_0/D1", "layers/{i}/operator/output_dictionary"),
    Row("encoder_norm/scale", "head_norm/scale"),
    Row("encoder_norm/bias", "head_norm/bias"),
    Row("head/kernel", "head/kernel"),
    Row("head/bias", "head/bias"),
)

CRATE_MAE = (
    Row("cls_token", "cls_token"),
    Row("mask_token", "mask_token"),
    Row("decoder_pos_embed", "positions"),
    *_dense("patch_embed.proj", "patch_embed", CONV),
    *_crate_layer("blocks.{i}.layers.0", "layers/{i}"),
    *_norm("norm", "norm"),
    *_norm("decoder_blocks.{i}.layers.0.0.norm", "decoder/{i}/operator_norm"),
    Row("decoder_blocks.{i}.layers.0.0.fn.weight", "decoder/{i}/operator/kernel", LINEAR),
    *_norm("decoder_blocks.{i}.layers.0.1.norm", "decoder/{i}/attention_norm"),
    Row(
        "decoder_blocks.{i}.layers.0.1.fn.qkv.weight",
        "decoder/{i}/attention/subspace/kernel",
        LINEAR,
    ),
    *_dense("decoder_blocks.{i}.layers.0.1.fn.to_out.0", "decoder/{i}/attention/output"),
    *_norm("decoder_norm", "decoder_norm"),
    *_dense("decoder_pred", "decoder_head"),
)

# What DINO's, DINOv2's, DINOv3's and timm's have alike. LayerScale is DINOv2's.
_VIT = (
    Row("cls_token", "cls_token"),
    *_dense("patch_embed.proj", "patch_embed", CONV),
    *_norm("blocks.{i}.norm1", "layers/{i}/attention_norm"),
    Row("blocks.{i}.attn.qkv.weight", "layers/{i}/attention/qkv/kernel", LINEAR),
    *_dense("blocks.{i}.attn.proj", "layers/{i}/attention/output"),
    Row("blocks.{i}.ls1.gamma", "layers/{i}/attention_scale"),
    *_norm("blocks.{i}.norm2", "layers/{i}/operator_norm"),
    Row("blocks.{i}.ls2.gamma", "layers/{i}/operator_scale"),
    *_dense("head", "head"),
)
VIT = (
    *_VIT,
    Row("pos_embed", "positions"),
    Row("register_tokens", "registers"),
    Row("blocks.{i}.attn.qkv.bias", "layers/{i}/attention/qkv/bias"),
)
DINOV3 = (
    *_VIT,
    Row("storage_tokens", "registers"),
    Row("rope_embed.periods", "periods", absent=lambda c: dino.periods(c.head_dim, c.rope_base)),
    Row("blocks.{i}.attn.qkv.bias", "layers/{i}/attention/bias", NO_KEY),
    *_norm("norm", "norm"),
    *_norm("cls_norm", "cls_norm"),
)
VIT_MLP = (
    *_dense("blocks.{i}.mlp.fc1", "layers/{i}/operator/expand"),
    *_dense("blocks.{i}.mlp.fc2", "layers/{i}/operator/contract"),
)
DINOV2_GATED = (
    *_dense("blocks.{i}.mlp.w12", "layers/{i}/operator/expand"),
    *_dense("blocks.{i}.mlp.w3", "layers/{i}/operator/contract"),
)
DINOV3_GATED = (
    *_halves("blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2", "layers/{i}/operator/expand"),
    *_dense("blocks.{i}.mlp.w3", "layers/{i}/operator/contract"),
)
VIT_NORM = _norm("norm", "norm")  # DINO's and timm's
VIT_MEAN_NORM = _norm("fc_norm", "norm")  # timm's, where tokens are averaged first


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that a file of this network must hold: where it goes and its shape there."""

    ours: str
    transform: Transform
    shape: tuple[int, ...]
    absent: Callable[[Any], Any] | None = None


def expected(
    rows: Iterable[Row], config: ImageModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Every tensor of a file, by its name there.

    Args:
        rows: the table of its layout.
        config: the network's.
        shapes: our parameters' shapes by path.
    """
    found = {}
    for row in rows:
        for i in itertools.count():
            path = row.ours.format(i=i)
            if path in shapes:
                # No memory: an array of stride 0 only carries the shape through the transform.
                template = np.broadcast_to(np.zeros((), np.int8), shapes[path])
                shape = row.transform.theirs(template, config).shape
                found[row.theirs.format(i=i)] = Tensor(path, row.transform, shape, row.absent)
            if path not in shapes or path == row.ours:
                break
    uncovered = set(shapes) - {tensor.ours for tensor in found.values()}
    assert not uncovered, f"no row for {sorted(uncovered)}"
    return found


def flatten(params: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters -> (path, leaf) pairs."""
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}/")
        else:
            yield path, value


def unflatten(flat: Mapping[str, object]) -> dict:
    """(path, leaf) pairs -> nested parameters, layer numbers as integers."""
    nested: dict = {}
    for path, value in flat.items():
        *parents, last = (int(k) if k.isdigit() else k for k in path.split("/"))
        node = nested
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return nested
