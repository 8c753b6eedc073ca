"""Which file is this? The dictionary of weights inside it, its family, and what its shapes tell."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from crate_jax.convert import formats
from crate_jax.convert.text import listed

# Wrappers put these before every name: DataParallel, torch.compile, DINO's multi-crop wrapper, and
# classes that hold the network as an attribute.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
# A name that only this family has, CRATE-alpha before CRATE since they share the rest.
SIGNATURES = (
    ("crate_alpha", "flax", r"Transformer/encoderblock_\d+/OvercompleteISTABlock_0/"),
    ("crate_alpha", "pytorch", r"transformer\.layers\.\d+\.1\.fn\.D1?$"),
    ("crate_mae", "pytorch", r"(decoder_)?blocks\.\d+\.layers\.0\."),
    ("crate", "pytorch", r"to_patch_embedding\.|transformer\.layers\.\d+\.1\.fn\."),
    ("vit", "pytorch", r"blocks\.\d+\.attn\.qkv\."),
)
# Of several networks in one file: DINO evaluates its teacher; an average follows the raw weights.
PREFERRED = ("", "state_dict", "model", "teacher", "net", "params", "opt/target", "student")


@dataclasses.dataclass
class Found:
    """A dictionary of weights inside a file."""

    file: formats.File
    entry: str  # where in the file, "" for its top level
    family: str
    naming: str
    state: dict[str, Any]  # tensors by name, prefixes stripped
    prefixes: tuple[str, ...]
    duplicates: tuple[str, ...]  # names that two tensors have once prefixes are stripped
    left_out: tuple[str, ...]  # tensors beside the network: DINO's projection head
    extra: tuple[str, ...]  # what else the file holds
    others: tuple[str, ...]  # further entries that hold a network


def find(file: formats.File, entry: str | None = None) -> Found:
    """The weights in a file.

    Args:
        file: as read.
        entry: which of several networks, "student" say; None for the usual one.

    Raises:
        ValueError: where there is none, saying what there is.
    """
    found = [f for name, tensors in _dictionaries(file) if (f := _network(file, name, tensors))]
    if entry is not None and entry not in (f.entry for f in found):
        raise ValueError(
            f"{file.path}: entry: expected one of "
            f"{', '.join(repr(f.entry) for f in found) or '(none)'}, got {entry!r}"
        )
    if not found:
        raise ValueError(
            f"{file.path}: expected the weights of a CRATE, CRATE-alpha, CRATE-MAE or ViT; got "
            f"{contents(file)}"
        )
    rank = {name: i for i, name in enumerate(PREFERRED)}
    found.sort(key=lambda f: rank.get(f.entry, len(rank)))
    chosen = next(f for f in found if entry in (None, f.entry))
    top = chosen.entry.split("/")[0]
    chosen.extra = tuple(
        str(key)
        for key, value in file.tree.items()
        if str(key) != top
        and not (chosen.entry == "" and formats.is_tensor(value))
        and not str(key).startswith(f"{chosen.entry}/" if chosen.entry else "\0")
    )
    chosen.others = tuple(f.entry for f in found if f is not chosen)
    return chosen


def contents(file: formats.File) -> str:
    """What an unidentified file holds, in a line."""
    tensors = [(n, t) for n, t in _dictionaries(file) if t]
    if not tensors:
        keys = listed(str(key) for key in file.tree)
        return f"no tensors by name, only the entries {keys or '(none)'}"
    name, largest = max(tensors, key=lambda item: len(item[1]))
    shown = listed(itertools.islice(largest, 4))
    where = f" in entry {name!r}" if name else ""
    return f"{len(largest)} tensors{where} named {shown}, ..."


def _dictionaries(file: formats.File) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary of named tensors: the top level, and nested ones or `a/b/name` prefixes."""

    def walk(name, tree, depth):
        yield name, {k: v for k, v in tree.items() if isinstance(k, str) and formats.is_tensor(v)}
        for key, value in tree.items():
            if depth and isinstance(value, Mapping) and isinstance(key, str):
                yield from walk(f"{name}/{key}" if name else key, value, depth - 1)

    yield from walk("", file.tree, 3)
    if file.format == "NumPy archive":
        for prefix in ("state_dict", "model", "params", "opt/target"):
            inside = {
                k.removeprefix(f"{prefix}/"): v
                for k, v in file.tree.items()
                if k.startswith(f"{prefix}/")
            }
            if inside:
                yield prefix, inside


def _network(file: formats.File, entry: str, tensors: dict[str, Any]) -> Found | None:
    state, prefixes, duplicates, left_out = strip(tensors)
    for family, naming, pattern in SIGNATURES:
        if any(re.match(pattern, name) for name in state):
            if file.format == "NumPy archive" and entry == "":
                # Arrays of nested entries were named with their path.
                state = {k: v for k, v in state.items() if naming == "flax" or "/" not in k}
            return Found(file, entry, family, naming, state, prefixes, duplicates, left_out, (), ())
    return None


def strip(
    tensors: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names without wrappers' prefixes.

    Returns:
        (tensors by bare name, the prefixes taken off, names that two tensors now share, names left
        out because they stand beside a `backbone.`, as DINO's projection head does).
    """
    state, taken, duplicates, left_out = dict(tensors), [], [], []
    while prefix := next((p for p in PREFIXES if any(k.startswith(p) for k in state)), None):
        if prefix == "backbone.":
            beside = [k for k in state if not k.startswith(prefix) and k.startswith("head.")]
            left_out += beside
            state = {k: v for k, v in state.items() if k not in beside}
        bare: dict[str, Any] = {}
        for name, tensor in state.items():
            short = name.removeprefix(prefix)
            if short in bare:
                duplicates.append(short)
            bare[short] = tensor
        state = bare
        taken.append(prefix)
    return state, tuple(taken), tuple(duplicates), tuple(left_out)


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


def facts(found: Found) -> dict[str, Any]:
    """Fields of the config that the shapes tell, and "patches", the number of positions.

    `heads` is among them only where the shapes do tell: without an output map there is one head,
    and flax keeps heads as an axis.

    Raises:
        ValueError: where a tensor that tells a size is missing or has a strange shape.
    """
    tell = {"crate": _crate, "crate_mae": _crate_mae, "vit": _vit, "crate_alpha": _crate_alpha}
    shapes = Shapes(found.state)
    if found.naming == "flax":
        return _crate_alpha_flax(shapes)
    return tell[found.family](shapes)


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
    told: dict[str, Any] = {"inner": inner, "dim": dim, "output_map": output in s}
    if rows == 3 * inner:
        told["attention"] = "mhsa"
    if output not in s:
        told["heads"] = 1
    elif inner == dim and "attention" not in told:
        told["not_heads"] = 1  # that would have no output map
    return told


def _crate(s: Shapes) -> dict[str, Any]:
    told = _mssa(s, "transformer.layers.0.0")
    told |= {
        "patch_size": _patch(
            s.axis("to_patch_embedding.2.weight", 1, 2), "to_patch_embedding.2.weight"
        ),
        "depth": s.depth(r"transformer\.layers\.(\d+)\."),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
    }
    told.setdefault("attention", "mssa")
    if "transformer.layers.0.1.fn.net.0.weight" in s:
        told["nonlinearity"] = "mlp"
    if "head.weight" in s:
        told["classes"] = s.axis("head.weight", 0, 2)
        told["head_hidden"] = s.axis("mlp_head.1.weight", 0, 2)
    else:
        told["classes"] = s.axis("mlp_head.1.weight", 0, 2) if "mlp_head.1.weight" in s else 0
    return told


def _crate_alpha(s: Shapes) -> dict[str, Any]:
    dim = s.axis("cls_token", 2, 3)
    told = _mssa(s, "transformer.layers.0.0")
    told.pop("not_heads", None)  # the authors' JAX class has the map then too
    return {
        **told,
        "patch_size": _conv_patch(s, "conv1.weight"),
        "depth": s.depth(r"transformer\.layers\.(\d+)\."),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
        "overcomplete": s.axis("transformer.layers.0.1.fn.D", 1, 2) // dim,
        "classes": s.axis("mlp_head.1.weight", 0, 2) if "mlp_head.1.weight" in s else 0,
    }


def _crate_alpha_flax(s: Shapes) -> dict[str, Any]:
    block = "Transformer/encoderblock_0"
    projection = f"{block}/MultiHeadDotProductSubspaceAttention_0/proj/kernel"
    dim, heads, head_dim = (s.axis(projection, axis, 3) for axis in range(3))
    return {
        "dim": dim,
        "heads": heads,
        "inner": heads * head_dim,
        "output_map": True,
        "patch_size": s.axis("embedding/kernel", 0, 4),
        "depth": s.depth(r"Transformer/encoderblock_(\d+)/"),
        "patches": s.axis("pos_embedding", 1, 3) - 1,
        "overcomplete": s.axis(f"{block}/OvercompleteISTABlock_0/D", 1, 2) // dim,
        "classes": s.axis("head/kernel", 1, 2) if "head/kernel" in s else 0,
        "head_epsilon": 1e-6,  # flax's default, which the JAX code leaves
    }


def _crate_mae(s: Shapes) -> dict[str, Any]:
    return {
        **_mssa(s, "blocks.0.layers.0.0"),
        "patch_size": _conv_patch(s, "patch_embed.proj.weight"),
        "depth": s.depth(r"blocks\.(\d+)\."),
        "decoder_depth": s.depth(r"decoder_blocks\.(\d+)\."),
        "patches": s.axis("decoder_pos_embed", 1, 3) - 1,
        "classes": 0,
    }


def _vit(s: Shapes) -> dict[str, Any]:
    dim = s.axis("cls_token", 2, 3)
    hidden = s.axis("blocks.0.mlp.fc1.weight", 0, 2)
    ratio = hidden / dim
    if int(dim * ratio) < hidden:  # the config multiplies back, and rounds down
        ratio = math.nextafter(ratio, math.inf)
    return {
        "dim": dim,
        "inner": s.axis("blocks.0.attn.proj.weight", 1, 2),
        "patch_size": _conv_patch(s, "patch_embed.proj.weight"),
        "depth": s.depth(r"blocks\.(\d+)\."),
        "patches": s.axis("pos_embed", 1, 3) - 1,
        "mlp_ratio": ratio,
        "classes": s.axis("head.weight", 0, 2) if "head.weight" in s else 0,
        # timm names its last norm after what it does.
        **({"pool": "mean"} if "fc_norm.weight" in s else {}),
        **({"norm_before_pool": False} if "fc_norm.weight" in s else {}),
    }
