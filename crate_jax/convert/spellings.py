"""The same network under other names: from those of a file to the authors', of which tables know.

No tensor is read for it: what is put together of several is read when it is asked for.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crate_jax.convert import formats
from crate_jax.convert.formats import Stored

State = Mapping[str, Any]
# Of transformers' ViTModel, Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel, in a file and
# in memory, one after the other.
TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.)?layers?\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),  # by number since torchvision 0.14
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^heads\.pre_logits\.", "pre_logits."),
)
_GATED = (
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
)
_NOT_GATED = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))


def dino(state: State) -> dict[str, Any]:
    """DINO's, DINOv2's and timm's names -> DINOv2's.

    Training checkpoints number a block by its chunk and by itself; timm calls registers by another
    name, and a gated FFN by those of the MLP.
    """
    renames = [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"^reg_token$", "register_tokens")]
    first = state.get("blocks.0.mlp.fc1.weight")
    second = state.get("blocks.0.mlp.fc2.weight")
    if first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]:
        renames += [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")]
    return _renamed(state, renames)


def transformers(state: State) -> dict[str, Any]:
    """transformers' names -> DINOv2's."""
    renamed = _renamed(state, (*TRANSFORMERS, *_GATED))
    renamed = _joined(renamed, r"(.*\.attn\.)[qkv]\.(weight|bias)$", ("q", "k", "v"), "qkv")
    return _joined(renamed, r"(.*\.mlp\.)w[12]\.(weight|bias)$", ("w1", "w2"), "w12")


def torchvision(state: State) -> dict[str, Any]:
    """torchvision's names -> DINO's."""
    return _renamed(state, TORCHVISION)


def transformers_dinov3(state: State) -> dict[str, Any]:
    """transformers' names of DINOv3 -> its authors'."""
    gated = any(".gate_proj." in name for name in state)
    renames = (*TRANSFORMERS, *(_GATED if gated else _NOT_GATED), (r"^register_", "storage_"))
    return _joined(
        _renamed(state, renames), r"(.*\.attn\.)[qkv]\.(weight|bias)$", ("q", "k", "v"), "qkv"
    )


def _renamed(state: State, renames) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, tensor in state.items():
        short = name
        for pattern, replacement in renames:
            short = re.sub(pattern, replacement, short)
        if short in renamed:
            raise ValueError(f"{name}: expected one tensor for {short}, got several")
        renamed[short] = tensor
    if (token := renamed.get("mask_token")) is not None and len(token.shape) == 3:
        renamed["mask_token"] = _made([token], token.shape[1:], lambda x: x[0])
    return renamed


def _joined(state: State, pattern: str, parts: tuple[str, ...], whole: str) -> dict[str, Any]:
    """Tensors that the authors keep as one, rows after rows; zeros for a key's bias not there."""
    joined: dict[str, Any] = {}
    for name, tensor in state.items():
        if not (match := re.match(pattern, name)):
            joined[name] = tensor
            continue
        prefix, kind = match.groups()
        tensors = [state.get(f"{prefix}{part}.{kind}") for part in parts]
        if any(t is None for t in tensors[::2]) or (kind == "weight" and None in tensors):
            joined[name] = tensor  # unexpected, and the whole is missing
            continue
        there = [t for t in tensors if t is not None]
        rows = [0 if t is None else t.shape[0] for t in tensors]
        rows = [count or rows[0] for count in rows]

        def stack(*arrays, rows=tuple(rows), absent=tuple(t is None for t in tensors)):
            left = iter(arrays)
            return np.concatenate(
                [
                    np.zeros(n, arrays[0].dtype) if gone else next(left)
                    for n, gone in zip(rows, absent, strict=True)
                ]
            )

        joined[f"{prefix}{whole}.{kind}"] = _made(there, (sum(rows), *tensor.shape[1:]), stack)
    return joined


def _made(tensors, shape, make: Callable[..., np.ndarray], dtype: str | None = None) -> Stored:
    """A tensor made of others when it is read."""
    dtype = dtype or str(tensors[0].dtype).removeprefix("torch.")
    return Stored(
        tuple(shape), dtype, lambda: make(*(formats.to_array("a part", t) for t in tensors))
    )


def with_all_positions(state: State, patches: int | None) -> dict[str, Any]:
    """[CLS]'s position first, then the patches', and none for registers.

    timm's files may have none for [CLS], which is as one of zeros, and may have some for registers,
    which are constants that are added to constants.

    Args:
        state: in DINOv2's names.
        patches: how many there are, where that is declared. Else a square number decides.

    Raises:
        ValueError: more than one reading gives a square, and none is declared.
    """
    state, positions = dict(state), state.get("pos_embed")
    cls, registers = state.get("cls_token"), state.get("register_tokens")
    if positions is None or cls is None or len(positions.shape) != 3 or len(cls.shape) != 3:
        return state
    count, dim = positions.shape[1:]
    r = 0 if registers is None or len(registers.shape) != 3 else registers.shape[1]
    own = [count - 1, count] + ([count - 1 - r] if r else [])
    fits = [n for n in own if n == patches] or [n for n in own if n > 1 and math.isqrt(n) ** 2 == n]
    timm = r and "mask_token" not in state  # whose networks with registers leave [CLS]'s out
    if timm and len(fits) > 1:
        sides = " or ".join(f"{n} patches, a square of {math.isqrt(n)}" for n in sorted(fits))
        raise ValueError(
            f"pos_embed: {count} positions beside [CLS] and {r} registers fit {sides}; declare "
            "image_size (--image-size), the size that they were trained at"
        )
    chosen = fits[0] if fits else count - (not timm)
    if chosen == count:
        state["pos_embed"] = _made(
            [positions], (1, count + 1, dim), lambda x: np.pad(x, ((0, 0), (1, 0), (0, 0)))
        )
    elif registers is not None and r and chosen == count - 1 - r:
        state["pos_embed"] = _made(
            [positions],
            (1, count - r, dim),
            lambda x: np.concatenate([x[:, :1], x[:, 1 + r :]], axis=1),
        )
        state["register_tokens"] = _made(
            [registers, positions],
            registers.shape,
            lambda token, x: token.astype(np.float32) + x[:, 1 : 1 + r].astype(np.float32),
            "float32",
        )
    return state
