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
_DINOV2 = "facebookresearch/dinov2, README (Apache-2.0)"
# Their licence has terms of its own for redistribution: none is to be shipped or mirrored.
_DINOV3 = "facebookresearch/dinov3, README (Meta's DINOv3 License; not to be passed on)"
_SIMDINO = "the README of 2502.10385's code"


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
    return table | _dino()


def _dino() -> dict[str, Published]:
    table = {}
    for size, heads in (("s", 6), ("b", 12), ("l", 16), ("g", 24)):
        for suffix, rule in (("", "dino"), ("_reg4", "antialias")):
            name = f"dinov2-{size}14{suffix.replace('_', '-')}"
            file = f"dinov2_vit{size}14{suffix}_pretrain.pth"
            table[name] = Published(name, file, _DINOV2, {"heads": heads, "positions": rule})
    for size, arch, heads, file_hash in (
        ("s16", "vits16", 6, "08c60483"),
        ("s16plus", "vits16plus", 6, "4057cbaa"),
        ("b16", "vitb16", 12, "73cec8be"),
        ("l16", "vitl16", 16, "8aa4cbdd"),
        ("l16plus", "vitl16plus", 16, "46503df0"),
        ("h16plus", "vith16plus", 20, "7c1da9a5"),
        ("7b16", "vit7b16", 32, "a955f4ea"),
    ):
        file = f"dinov3_{arch}_pretrain_lvd1689m-{file_hash}.pth"
        table[f"dinov3-{size}"] = Published(f"dinov3-{size}", file, _DINOV3, {"heads": heads})
    # Trained on satellite images, with statistics of their own.
    satellite = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
    for size, arch, heads, file_hash in (
        ("l16", "vitl16", 16, "eadcf0ff"),
        ("7b16", "vit7b16", 32, "a6675841"),
    ):
        file = f"dinov3_{arch}_pretrain_sat493m-{file_hash}.pth"
        table[f"dinov3-{size}-sat"] = Published(
            f"dinov3-{size}", file, _DINOV3, {"heads": heads} | satellite
        )
    for size, heads in (("b16", 12), ("l16", 16)):
        table[f"simdino-{size}"] = Published(
            f"vit-{size}", "(a drive)", _SIMDINO, {"heads": heads, "positions": "dino"}
        )
        table[f"simdinov2-{size}"] = Published(
            f"simdinov2-{size}", "(a drive)", _SIMDINO, {"heads": heads, "positions": "antialias"}
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
