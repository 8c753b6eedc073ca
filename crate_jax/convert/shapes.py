"""What the shapes of a state dict tell of a network: a function for each layout.

Each returns fields of the config, and "patches", the number of positions; "inner", the width of all
heads; "output_map", where it matters; "not_heads", a number of heads that the shapes exclude.
`heads` is among them only where the shapes do tell: without an output map there is one head, and
flax keeps heads as an axis. A missing or strange tensor that tells a size is a ValueError.
"""

import math
import re
from collections.abc import Mapping
from typing import Any


class Shapes:
    """The shapes in a state dict, asked for by name."""

    def __init__(self, state: Mapping[str, Any]):
        self.state = state

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self.state:
            raise ValueError(f"{name} is missing, without which the network's size is not known")
        return tuple(self.state[name].shape)

    def axis(self, name: str, axis: int, dimensions: int) -> int:
        """One length of a tensor that has to have so many dimensions."""
        shape = self[name]
        if len(shape) != dimensions:
            raise ValueError(f"{name}: expected {dimensions} dimensions, got shape {shape}")
        return shape[axis]

    def depth(self, pattern: str) -> int:
        """One more than the highest layer number."""
        found = [int(m[1]) for name in self.state if (m := re.match(pattern, name))]
        highest = max(found, default=-1)
        if highest >= len(self.state):
            raise ValueError(f"layers: a number {highest} among {len(self.state)} tensors")
        return highest + 1


def _patch(pixels: int, name: str) -> int:
    patch = math.isqrt(max(pixels, 0) // 3)
    if 3 * patch**2 != pixels or not patch:
        raise ValueError(f"{name}: expected patches of 3 p^2 numbers, got {pixels}")
    return patch


def _conv_patch(s: Shapes, name: str) -> int:
    channels, rows, columns = (s.axis(name, axis, 4) for axis in (1, 2, 3))
    if channels != 3 or rows != columns:
        raise ValueError(f"{name}: expected 3 channels and square patches, got shape {s[name]}")
    return rows


def _mssa(s: Shapes, layer: str) -> dict[str, Any]:
    """Attention of a PyTorch CRATE layer: tied or not, the inner width, perhaps the heads."""
    rows, dim = (s.axis(f"{layer}.fn.qkv.weight", axis, 2) for axis in (0, 1))
    output = f"{layer}.fn.to_out.0.weight"
    inner = s.axis(output, 1, 2) if output in s else dim
    inferred: dict[str, Any] = {"inner": inner, "dim": dim, "output_map": output in s}
    if rows == 3 * inner:
        inferred["attention"] = "mhsa"
    if output not in s:
        inferred["heads"] = 1
    elif inner == dim and "attention" not in inferred:
        inferred["not_heads"] = 1  # that would have no output map
    return inferred


def crate(s: Shapes) -> dict[str, Any]:
    """CRATE, its ablations and the demo model."""
    inferred = _mssa(s, "transformer.layers.0.0")
    inferred |= {
        "patch_size": _patch(
            s.axis("to_patch_embedding.2.weight", 1, 2), "to_patch_embedding.2.weight"
        ),
        "depth": s.depth(r"transformer\.layers\.(\d+)\."),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
    }
    inferred.setdefault("attention", "mssa")
    if "transformer.layers.0.1.fn.net.0.weight" in s:
        inferred["nonlinearity"] = "mlp"
    if "head.weight" in s:
        inferred["classes"] = s.axis("head.weight", 0, 2)
        inferred["head_hidden"] = s.axis("mlp_head.1.weight", 0, 2)
    else:
        inferred["classes"] = s.axis("mlp_head.1.weight", 0, 2) if "mlp_head.1.weight" in s else 0
    return inferred


def crate_alpha(s: Shapes) -> dict[str, Any]:
    """CRATE-alpha of the PyTorch class."""
    dim = s.axis("cls_token", 2, 3)
    inferred = _mssa(s, "transformer.layers.0.0")
    inferred.pop("not_heads", None)  # the authors' JAX class has the map then too
    return {
        **inferred,
        "patch_size": _conv_patch(s, "conv1.weight"),
        "depth": s.depth(r"transformer\.layers\.(\d+)\."),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
        "overcomplete": s.axis("transformer.layers.0.1.fn.D", 1, 2) // dim,
        "classes": s.axis("mlp_head.1.weight", 0, 2) if "mlp_head.1.weight" in s else 0,
    }


def crate_alpha_flax(s: Shapes) -> dict[str, Any]:
    """CRATE-alpha of the JAX class."""
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
    dim, heads, head_dim = (s.axis(f"{attention}/proj/kernel", axis, 3) for axis in range(3))
    return {
        "dim": dim,
        "heads": heads,
        "inner": heads * head_dim,
        "output_map": f"{attention}/out/kernel" in s,  # always in theirs, not in one of ours
        "patch_size": s.axis("embedding/kernel", 0, 4),
        "depth": s.depth(r"Transformer/encoderblock_(\d+)/"),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
        "overcomplete": s.axis(f"{block}/OvercompleteISTABlock_0/D", 1, 2) // dim,
        "classes": s.axis("head/kernel", 1, 2) if "head/kernel" in s else 0,
        "head_epsilon": 1e-6,  # flax's default, which the JAX code leaves
    }


def crate_mae(s: Shapes) -> dict[str, Any]:
    """CRATE-MAE."""
    return {
        **_mssa(s, "blocks.0.layers.0.0"),
        "patch_size": _conv_patch(s, "patch_embed.proj.weight"),
        "depth": s.depth(r"blocks\.(\d+)\."),
        "decoder_depth": s.depth(r"decoder_blocks\.(\d+)\."),
        "patches": s.axis("decoder_pos_embed", 1, 3) - 1,
        "classes": 0,
    }


def _ratio(dim: int, hidden: int) -> float:
    ratio = hidden / dim
    # The config multiplies back, and rounds down.
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _vit(s: Shapes, gate: str, packed: int) -> dict[str, Any]:
    """What DINO's, DINOv2's, DINOv3's and timm's have alike; `gate` is a gated FFN's first map."""
    dim = s.axis("cls_token", 2, 3)
    gated = f"blocks.0.mlp.{gate}.weight" in s
    hidden = s.axis(f"blocks.0.mlp.{gate if gated else 'fc1'}.weight", 0, 2)
    return {
        "dim": dim,
        "inner": s.axis("blocks.0.attn.proj.weight", 1, 2),
        "patch_size": _conv_patch(s, "patch_embed.proj.weight"),
        "depth": s.depth(r"blocks\.(\d+)\."),
        "ffn": "swiglu" if gated else "mlp",
        "mlp_ratio": _ratio(dim, hidden // packed if gated else hidden),
        "qkv_bias": "blocks.0.attn.qkv.bias" in s,
        "classes": s.axis("head.weight", 0, 2) if "head.weight" in s else 0,
    }


def vit(s: Shapes) -> dict[str, Any]:
    """A ViT in DINO's, DINOv2's or timm's names."""
    inferred = _vit(s, "w12", packed=2) | {
        "patches": s.axis("pos_embed", 1, 3) - 1,
        "registers": s.axis("register_tokens", 1, 3) if "register_tokens" in s else 0,
        "layer_scale": "blocks.0.ls1.gamma" in s,
    }
    # DINOv2's rule is not seen, but that timm's files lack its mask token; DINO's is not told.
    if inferred["registers"] or (inferred["layer_scale"] and "mask_token" not in s):
        inferred["positions"] = "antialias"
    elif inferred["layer_scale"]:
        inferred["positions"] = "dino"
    # timm names its last norm after what it does.
    if "fc_norm.weight" in s:
        inferred |= {"pool": "mean", "norm_before_pool": False}
    elif inferred["classes"] and s.axis("head.weight", 1, 2) == 2 * inferred["dim"]:
        inferred["pool"] = "cls_mean"  # transformers' classifiers of DINOv2
    return inferred


def transformers_vit(s: Shapes) -> dict[str, Any]:
    """transformers' ViTModel and Dinov2Model, spelt as DINOv2, with the defaults of their code."""
    inferred = vit(s)
    return inferred | {
        "positions": "antialias" if inferred["registers"] else "size",
        "epsilon": 1e-6 if inferred["layer_scale"] else 1e-12,
    }


def dinov3(s: Shapes) -> dict[str, Any]:
    """A DINOv3; the file's periods tell d_head."""
    inferred = _vit(s, "w1", packed=1) | {
        "patches": None,  # no position is stored
        "registers": s.axis("storage_tokens", 1, 3) if "storage_tokens" in s else 0,
        "cls_norm": "cls_norm.weight" in s,
    }
    if "rope_embed.periods" in s:
        inferred["heads"] = inferred["inner"] // max(1, 4 * s.axis("rope_embed.periods", 0, 1))
    return inferred
