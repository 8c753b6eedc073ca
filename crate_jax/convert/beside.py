"""What stands beside the weights in a directory that transformers wrote."""

import pathlib
from collections.abc import Mapping
from typing import Any

from crate_jax import files
from crate_jax.convert.identify import Found

_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# Ours for its fields; those that shapes say too show whether it belongs to the file.
_FIELDS = {
    "num_attention_heads": "heads",
    "layer_norm_eps": "epsilon",
    "image_size": "image_size",
    "rope_theta": "rope_base",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_register_tokens": "registers",
    "patch_size": "patch_size",
}
_PREPROCESSING = {"image_mean": "mean", "image_std": "std"}


def weights_of(path: pathlib.Path) -> pathlib.Path:
    """The weights, or the index of their parts, where the path is a directory of transformers."""
    if path.is_dir() and not (path / "checkpoints").exists():
        return next((path / name for name in _WEIGHTS if (path / name).is_file()), path)
    return path


def declare(found: Found) -> str:
    """Takes config.json and preprocessor_config.json beside the weights as their declaration.

    Returns:
        What is taken for granted because there is none, or "".

    Raises:
        ValueError: where they are no JSON objects, or name an activation that is not computed here.
    """
    path = found.file.path
    config = _read(path, "config.json")
    gated = found.family == "dinov3" and any(".mlp.w1." in name for name in found.state)
    if config is None:
        return "gated by SiLU, as released; no config.json says hidden_act" if gated else ""
    expected, act = "silu" if gated else "gelu", config.get("hidden_act", "gelu")
    if act != expected:
        raise ValueError(
            f"hidden_act: expected {expected}, which is computed here, got {act!r} in config.json"
        )
    declared = _taken(config, _FIELDS) | _taken(
        _read(path, "preprocessor_config.json") or {}, _PREPROCESSING
    )
    if found.family == "dinov3":
        declared.pop("image_size", None)  # nothing is stored for it
    else:
        declared.pop("rope_base", None)
    found.file.declaration = {"config": declared}
    found.file.declared_in = "config.json"
    return ""


def _taken(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    taken = {ours: values[theirs] for theirs, ours in fields.items() if theirs in values}
    if isinstance(patch := taken.get("patch_size"), list) and len(set(patch)) == 1:
        taken["patch_size"] = patch[0]  # a square as its two sides
    return taken


def _read(path: pathlib.Path, name: str) -> dict[str, Any] | None:
    """The file of that name beside the weights, or of their name before it; None without one."""
    own = path.with_name(f"{path.name.partition('.')[0]}.{name}")
    for candidate in (own, path.with_name(name)):
        if candidate.is_file():
            try:
                values = files.read_json(candidate)
                if isinstance(values, dict):
                    return values
            except ValueError:
                pass
            raise ValueError(f"{candidate}: expected a JSON object; fetch it again")
    return None
