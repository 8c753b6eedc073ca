"""Published checkpoints: what their shapes do not tell, by name.

Only facts that the authors' code or papers state. `where` names the place, not an address that
may die.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file: a named size of `variants`, what must be declared, and where it is from."""

    variant: str
    file: str
    where: str
    declared: Mapping[str, Any]


_CRATE = "Ma-Lab-Berkeley/CRATE, README"
_NOTEBOOKS = "LeslieTrue/crate-emergence-notebooks"
_ALPHA = "UCSC-VLAA/CRATE-alpha, README (Hugging Face)"
_DINO = "facebookresearch/dino, README"


def _table() -> dict[str, Published]:
    table = {
        "crate-s16-in1k": Published("crate-s16", "(Google Drive)", _CRATE, {"heads": 12}),
        # B/8's backbone has the same shapes with 12 heads.
        "crate-demo": Published("crate-demo", "crate-demo.pth", _NOTEBOOKS, {"heads": 6}),
        "crate-base-768": Published(
            "crate-b8", "read by the notebooks' CRATE_base_768", _NOTEBOOKS, {"heads": 12}
        ),
        "crate-small-21k": Published(
            "crate-s8-21k", "read by the notebooks' CRATE_small_21k", _NOTEBOOKS, {"heads": 6}
        ),
        "crate-base-21k": Published(
            "crate-b8-21k", "read by the notebooks' CRATE_base_21k", _NOTEBOOKS, {"heads": 12}
        ),
    }
    for lambd in (0.5, 5.0):
        table[f"crate-mae-b16-lmd{lambd}"] = Published(
            "crate-mae-b16",
            f"crate-mae-base-lmd{lambd}-checkpoint-799.pth",
            _NOTEBOOKS,
            {"heads": 12, "lambd": lambd},
        )
    for size, heads in (("b16", 12), ("l14", 16)):
        table[f"crate-alpha-{size}"] = Published(
            f"crate-alpha-{size}", f"crate_alpha_{size.upper()}.pth", _ALPHA, {"heads": heads}
        )
    for size, patch, heads in (("s", 16, 6), ("s", 8, 6), ("b", 16, 12), ("b", 8, 12)):
        stem = f"dino_{'deitsmall' if size == 's' else 'vitbase'}{patch}_pretrain"
        table[f"dino-vit{size}{patch}"] = Published(
            f"vit-{size}{patch}",
            f"{stem}.pth or {stem}_full_checkpoint.pth",
            _DINO,
            {"heads": heads},
        )
    return table


PUBLISHED: Mapping[str, Published] = types.MappingProxyType(_table())


def entry(name: str) -> Published:
    """The entry of a name.

    Raises:
        ValueError: for an unknown name; the message has the nearest, or all.
    """
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PUBLISHED)}"
        raise ValueError(f"published: expected the name of a published file, got {name!r}; {hint}")
    return PUBLISHED[name]
