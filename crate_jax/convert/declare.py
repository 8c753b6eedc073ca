"""From shapes and declarations to a config. What shapes cannot tell is never guessed.

Heads above all: the released demo model and B/8 have the same backbone shapes with 6 and 12 heads,
and the wrong number raises no error but gives wrong maps.
"""

import dataclasses
import difflib
import math
import operator
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from crate_jax.convert import published, weights
from crate_jax.convert.identify import Found
from crate_jax.models import variants
from crate_jax.models.base import ImageModelConfig
from crate_jax.models.vit import ViTConfig

# Shapes tell these: declared, they are compared.
CHECKED = ("registers", "patch_size")
# Fields of a config that a user may declare; the others are read off the shapes.
DECLARABLE: tuple[str, ...] = (
    "heads",
    "pool",
    "image_size",
    "lambd",
    "positions",
    "step_size",
    "epsilon",
    "head_epsilon",
    "norm_epsilon",
    "nonlinearity",
    "mlp_skip",
    "mask_ratio",
    "rope_base",
    "mean",
    "std",
    *CHECKED,
)
_STORED = (*DECLARABLE, "dim", "depth")  # what may be said of a file beside it or inside
# These choose how a network is looked at; declaring them anew contradicts nothing.
_CHOICES = ("image_size", "positions")
_NORM = re.compile(r"^fc_norm\.")
_DEFAULT = "default of the code"
_REMEDIES = {
    "stored in the file": "convert the original file anew",
    "config.json": "fetch it and the weights from one place",
}
_CONFIG = "config.model"  # of the run that starts from the file


@dataclasses.dataclass
class Declared:
    """A config, and where each of its fields comes from."""

    config: ImageModelConfig
    origin: dict[str, str]
    resized_from: tuple[int, int] | None = None  # (rows, columns) where positions were resampled


def declared_size(found: Found, declared: Mapping[str, Any]) -> tuple[int, int] | None:
    """The image size that is declared of a file's positions, by the user or beside the weights."""
    stored = (found.file.declaration or {}).get("config", {})
    size = stored.get("image_size") or declared.get("image_size")
    return None if size is None else plain("image_size", size)


def check_names(declared: Mapping[str, Any], options: tuple[str, ...]) -> None:
    """Raises ValueError for a declaration that does not exist, naming the nearest."""
    for name in declared:
        if name not in DECLARABLE + options:
            near = difflib.get_close_matches(name, DECLARABLE + options, n=1)
            raise ValueError(
                f"{name}: expected a declaration among {', '.join(DECLARABLE + options)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )


def declare(
    found: Found,
    inferred: Mapping[str, Any],
    declared: Mapping[str, Any],
    entry: str | None = None,
    assumed: Mapping[str, Any] | None = None,
) -> Declared:
    """The config of the weights found.

    Args:
        found: which file, family and state.
        inferred: `identify.facts(found)`.
        declared: what the user says, by config field.
        entry: the name of a published file, which says the rest.
        assumed: what holds, by config field, where nothing else says it; of `image_size` the grid
            where the number of positions fits it, else its shape.

    Raises:
        ValueError: everything undeclared or contradictory, together, each with its remedy.
    """
    problems: list[str] = []
    known = variants.FAMILIES[found.family][0]
    fields = {f.name for f in dataclasses.fields(known)}
    inferred = dict(inferred)
    patches, inner, output_map = (
        inferred.pop("patches"),
        inferred.pop("inner"),
        inferred.pop("output_map", False),
    )
    not_heads = inferred.pop("not_heads", None)
    values, origin = dict(inferred), dict.fromkeys(inferred, "inferred from shapes")
    origin |= dict.fromkeys({"head_epsilon", "epsilon", "positions"} & set(inferred), _DEFAULT)
    stored = (found.file.declaration or {}).get("config", {})
    assumed = {k: v for k, v in (assumed or {}).items() if k in fields}
    _settle_ratio(values, stored, assumed)
    source_size = None
    sources = [(found.file.declared_in, stored)]
    if entry is not None:
        sources.append((f"published {entry}", _published(entry, values, found.family, problems)))
    sources.append(("declared", {k: v for k, v in declared.items() if v is not None}))
    for source, given in sources:
        for name, value in given.items():
            known_here = DECLARABLE if source == "declared" else _STORED
            if name not in known_here or (name not in fields and source != "declared"):
                continue
            if name not in fields:
                problems.append(f"{name}: {found.family} has none, got {value!r}")
                continue
            value = plain(name, value)
            if name == "image_size" and source == found.file.declared_in:
                source_size = value
            contradicts = name in values and name not in _CHOICES and values[name] != value
            if contradicts and origin[name] != _DEFAULT:
                problems.append(
                    f"{name}: {source} as {value!r}, but {origin[name]} as {values[name]!r}; "
                    + _REMEDIES.get(source, f"leave {name} out")
                )
                continue
            values[name], origin[name] = value, source

    for name in set(assumed) & set(DECLARABLE) - set(values) - {"image_size", "pool"}:
        if (name, assumed[name]) != ("nonlinearity", "mlp"):  # its tensors would tell
            values[name], origin[name] = assumed[name], _CONFIG

    if "heads" not in values:
        problems.append(_undeclared_heads(values, inner, not_heads, found.family))
    elif not_heads == values["heads"]:
        problems.append(
            f"heads: {origin['heads']} {not_heads}, but one head of full width has no output map "
            f"and this file has one; candidates: {_divisors(inner, not_heads)}"
        )
    elif values["heads"] < 1 or inner % values["heads"]:
        problems.append(
            f"heads: expected a divisor of the inner width {inner} "
            f"({_divisors(inner, not_heads)}), got {values['heads']!r} ({origin['heads']})"
        )
    else:
        values["head_dim"] = inner // values["heads"]
        if "full_width_output" in fields:
            one = values["heads"] == 1 and inner == values["dim"]
            values["full_width_output"] = one and output_map
    named = re.search(r"lmd(\d+(?:\.\d+)?)", found.file.path.name)
    undeclared = "lambd" in fields and origin.get("lambd") in (None, _CONFIG)
    if named and undeclared and values.get("lambd") != float(named[1]):
        problems.append(
            f"lambd: the file's name says lmd{named[1]}, and {_CONFIG} or the code's default "
            f"{values.get('lambd', 'another')}; declare lambd={named[1]}"
        )
    grid = _grid(patches, values, source_size, assumed.get("image_size"), problems)
    if problems:
        raise ValueError(
            f"{found.file.path}: {found.family} of width {values['dim']}, depth {values['depth']}, "
            f"patch {values['patch_size']}\n  " + "\n  ".join(problems)
        )
    resized_from = _place(grid, values, origin)
    config = known.from_dict(values)
    for name in DECLARABLE:
        if name in fields:
            origin.setdefault(name, _DEFAULT)
    return Declared(config, origin, resized_from)


def vit_pool(
    found: Found,
    inferred: dict[str, Any],
    declared: Mapping[str, Any],
    assumed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is inferred of a ViT, with its pooling: by timm's name of the last norm, and declared.

    timm calls it `fc_norm` where it follows the pooling, which may be the mean, the maximum or half
    of both, and `norm` where it precedes the pooling. Which of the three must be declared, but by a
    run that begins with these weights and has a head of its own.

    Raises:
        ValueError: it is not declared where it must be, or is one that is not computed here.
    """
    stored = (found.file.declaration or {}).get("config", {})
    pool = declared.get("pool") or stored.get("pool")
    if pool is not None and pool not in ViTConfig.pools:
        raise ValueError(
            f"pool: expected one of {', '.join(ViTConfig.pools)}, got {pool!r}; timm's max and "
            "avgmax pooling are not computed here"
        )
    if "pool" not in inferred:
        return inferred | {"norm_before_pool": pool == "mean"}
    if inferred["pool"] == "cls_mean":
        return inferred
    if pool in ("cls", "last_vit"):  # each token that is read is normalised, before or after
        found.state = {_NORM.sub("norm.", name): tensor for name, tensor in found.state.items()}
        return {k: v for k, v in inferred.items() if k != "pool"}
    if pool is None and assumed is None:
        raise ValueError(
            "pool: undeclared, and the last norm's name (fc_norm) tells only that pooling precedes "
            "it: declare pool=mean (--pool=mean) for timm's global_pool='avg'; its avgmax and max "
            "are not computed here"
        )
    return inferred


def misfits(found: Found, inferred: Mapping[str, Any]) -> list[str]:
    """What does not fit in a file's tensors whatever is declared.

    Heads and the grid change no name and no shape (but one head, which they show), so any will do.
    """
    patch, patches = inferred["patch_size"], inferred["patches"] or 1
    stand_in: dict[str, Any] = {"image_size": (patch, patch * patches)}
    if "heads" not in inferred:
        stand_in["heads"] = inferred["inner"]  # heads of width 1, always a divisor
    undeclared = dataclasses.replace(
        found, file=dataclasses.replace(found.file, path=pathlib.Path("-"), declaration=None)
    )
    try:
        config = declare(undeclared, inferred, stand_in).config
    except ValueError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return weights.misfits(found.state, config, found.layout)


def plain(name: str, value: Any) -> Any:
    """A declared value in the type that configs keep.

    Raises:
        ValueError: a value of another kind.
    """
    whole = ("heads", "dim", "depth", *CHECKED)
    expected = dict.fromkeys(whole, "an integer") | {"image_size": "an integer or (height, width)"}
    expected |= {"mean": "three numbers", "std": "three numbers", "mlp_skip": "True or False"}
    try:
        if name in whole:
            return operator.index(value)
        if name == "image_size":
            size = tuple(value) if isinstance(value, tuple | list) else (value, value)
            height, width = (operator.index(v) for v in size)
            if height < 1 or width < 1:
                raise ValueError
            return height, width
        if name in ("mean", "std"):
            red, green, blue = (float(v) for v in value)
            return red, green, blue
        if name in ("pool", "positions", "nonlinearity"):
            return value  # checked against their choices by the config
        if name == "mlp_skip":
            return {True: True, False: False}[value]
        return float(value)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{name}: expected {expected.get(name, 'a number')}, got {value!r}"
        ) from error


def _published(entry, values, family, problems) -> dict[str, Any]:
    known = published.entry(entry)
    config = variants.VARIANTS[known.variant]
    for name in ("dim", "depth", "patch_size", "registers"):
        if config.family != family or getattr(config, name) != values.get(name, 0):
            problems.append(
                f"published: {entry} is a {config.family} of width {config.dim}, depth "
                f"{config.depth}, patch {config.patch_size}, which this file is not"
            )
            return {}
    return dict(known.declared)


def _divisors(inner: int, not_heads: int | None) -> str:
    return ", ".join(str(h) for h in _divisors_of(inner) if h != not_heads)


def _divisors_of(number: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if not number % d]
    return sorted({*small, *(number // d for d in small)})


def candidates(values: Mapping[str, Any], family: str) -> list[str]:
    """Named networks and published files that have these shapes, with their heads."""
    shape = (family, values["dim"], values["depth"], values["patch_size"])
    same = [
        f"{name} ({config.heads} heads)"
        for name, config in variants.VARIANTS.items()
        if (config.family, config.dim, config.depth, config.patch_size) == shape
    ]
    return same + [
        f"published={name} ({known.declared['heads']} heads)"
        for name, known in published.PUBLISHED.items()
        if (c := variants.VARIANTS[known.variant])
        and (c.family, c.dim, c.depth, c.patch_size) == shape
    ]


def _undeclared_heads(values, inner, not_heads, family) -> str:
    named = candidates(values, family)
    return (
        f"heads: undeclared, and tensor shapes do not tell; declare heads= (--heads), one of "
        f"{_divisors(inner, not_heads)}"
        + (f"; of this size are known {', '.join(named)}" if named else "")
    )


def _settle_ratio(values: dict[str, Any], *known: Mapping[str, Any]) -> None:
    """The ratio of the MLP that was meant: a width of rounded numbers fits several."""
    hidden = int(values["dim"] * values.get("mlp_ratio", 0))
    given = [sayer.get("mlp_ratio") for sayer in known if hidden]
    numbers = [float(r) for r in given if isinstance(r, int | float) and math.isfinite(r)]
    if meant := [ratio for ratio in numbers if int(values["dim"] * ratio) == hidden]:
        values["mlp_ratio"] = meant[0]


def _grid(patches, values, source_size, assumed_size, problems) -> tuple[int, int] | None:
    """(rows, columns) of the file's positions, where shapes say so."""
    patch, size = values["patch_size"], values.get("image_size")
    if patches is None:  # the network stores no positions
        return None
    if patches < 1:
        problems.append("positions: expected [CLS] and at least one patch, got fewer")
        return None
    for given, name in ((size, "image_size"), (source_size, "stored image_size")):
        if given is not None and any(s % patch for s in given):
            problems.append(f"{name}: expected multiples of the patch size {patch}, got {given}")
            return None
    if source_size is not None:
        grid = source_size[0] // patch, source_size[1] // patch
        if grid[0] * grid[1] == patches:
            return grid
        problems.append(
            f"stored image_size {source_size} has {grid[0] * grid[1]} patches, the file has "
            f"positions for {patches}"
        )
        return None
    if size is not None and (size[0] // patch) * (size[1] // patch) == patches:
        return size[0] // patch, size[1] // patch
    pairs = [(rows, patches // rows) for rows in _divisors_of(patches)]
    if assumed_size is not None:
        rows, columns = assumed_size[0] // patch, assumed_size[1] // patch
        alike = [(r, c) for r, c in pairs if r * columns == c * rows]
        if alike:
            return alike[0]
    side = math.isqrt(patches)
    if side**2 == patches:
        return side, side
    shown = ", ".join(f"({r * patch}, {c * patch})" for r, c in pairs)
    problems.append(
        f"image_size: {patches} positions are no square grid, and their number does not tell its "
        f"sides; declare image_size=(height, width), one of {shown}"
        + (f", got {size}" if size else "")
    )
    return None


def _place(grid, values, origin) -> tuple[int, int] | None:
    """Settles image_size; returns the file's grid where positions must be resampled to another."""
    patch = values["patch_size"]
    if grid is None:
        return None
    own = (grid[0] * patch, grid[1] * patch)
    wanted = values.setdefault("image_size", own)
    origin.setdefault("image_size", "inferred from shapes, a square")
    if wanted == own:
        return None
    if values.get("positions") == "notebook":
        # That rule resamples from the stored grid at every call, so the stored grid stays.
        values["image_size"] = own
        origin["image_size"] = "of the file; the notebook rule resamples at every call"
        return None
    return grid
