"""Which file is this? The dictionary of weights inside it, its family, and what its shapes tell."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from crate_jax.convert import formats, refusals, spellings
from crate_jax.convert.layouts import LAYOUTS, Layout
from crate_jax.convert.shapes import Shapes
from crate_jax.convert.text import listed

# Wrappers put these before every name: DataParallel, torch.compile, DINO's multi-crop wrapper, and
# classes that hold the network as an attribute.
PREFIXES = (
    *("module.", "_orig_mod.", "backbone.", "model."),
    *("vit.", "dinov2.", "dinov2_with_registers.", "dinov3_vit."),
)
# Projection heads of self-supervised training, which stand beside a `backbone.`.
_BESIDE = ("head.", "dino_head.", "ibot_head.")
_REGISTERS = ("register_tokens", "storage_tokens")
# Of several networks in one file: DINO evaluates its teacher; an average follows the raw weights.
PREFERRED = ("", "state_dict", "model", "teacher", "net", "params", "opt/target", "student")


@dataclasses.dataclass
class Found:
    """A dictionary of weights inside a file."""

    file: formats.File
    entry: str  # where in the file, "" for its top level
    layout: Layout
    state: dict[str, Any]  # tensors by name, prefixes stripped
    prefixes: tuple[str, ...]
    duplicates: tuple[str, ...]  # names that two tensors have once prefixes are stripped
    left_out: tuple[str, ...]  # tensors beside the network: DINO's projection head
    extra: tuple[str, ...]  # what else the file holds
    others: tuple[str, ...]  # further entries that hold a network

    @property
    def family(self) -> str:
        """The family of networks."""
        return self.layout.family


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
            f"{file.path}: expected the weights of a CRATE, CRATE-alpha, CRATE-MAE, ViT, DINOv2 or "
            f"DINOv3, got {contents(file)}"
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
    if known := refusals.reasons(strip(largest)[0]):
        return f"another network: {'; '.join(known)}"
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
    for layout in LAYOUTS:
        if any(re.match(layout.signature, name) for name in state):
            if file.format == "NumPy archive" and entry == "":
                # Arrays of nested entries were named with their path.
                state = {k: v for k, v in state.items() if layout.naming == "flax" or "/" not in k}
            if layout.family in ("vit", "dinov3"):
                pooler = [k for k in state if k.startswith("pooler.")]  # not of the classifier
                left_out += tuple(pooler)
                state = {k: v for k, v in state.items() if k not in pooler}
                spelt = layout.spelling(state)
                # transformers keeps a tensor of registers where there are none.
                spelt = {k: x for k, x in spelt.items() if not (k in _REGISTERS and 0 in x.shape)}
                if known := refusals.reasons({*state, *spelt}):
                    raise ValueError(
                        f"{file.path}: expected a ViT of DINO's, DINOv2's, DINOv3's or timm's "
                        f"plain form, got {'; '.join(known)}; it is not computed here"
                    )
                state = spelt
            return Found(file, entry, layout, state, prefixes, duplicates, left_out, (), ())
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
            beside = [k for k in state if not k.startswith(prefix) and k.startswith(_BESIDE)]
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


def facts(found: Found, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """What the shapes of a network's tensors tell; see `shapes`.

    Args:
        found: the network; the positions of a ViT are brought to [CLS] and patches.
        size: (height, width) that is declared, which tells what a number of positions does not.

    Raises:
        ValueError: where a tensor that tells a size is missing or has a strange shape.
    """
    if found.family == "vit":
        patches = None
        if size is not None:
            patch = max(1, Shapes(found.state).axis("patch_embed.proj.weight", 2, 4))
            patches = (size[0] // patch) * (size[1] // patch)
        found.state = spellings.with_all_positions(found.state, patches)
    return found.layout.facts(Shapes(found.state))
