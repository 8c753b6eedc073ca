"""`--inspect`: what a file is, in lines for a person."""

import collections
import os
import pathlib
from collections.abc import Mapping

from crate_jax.convert import beside, declare, formats, identify, shipped, weights
from crate_jax.convert.text import listed, printable

_NAMINGS = {
    "flax": "the authors' JAX code",
    "pytorch": "PyTorch",
    "torchvision": "torchvision",
    "transformers": "transformers (Hugging Face)",
}


def inspect(path: str | os.PathLike) -> str:
    """Family, width, depth, patch, classes, prefixes, extra entries, what is still undeclared.

    Raises:
        ValueError: where the file cannot be read; one that is read but not known is described.
        FileNotFoundError: where there is none.
        ImportError: for a PyTorch file without PyTorch.
    """
    path = beside.weights_of(shipped.resolve(path))
    if path.is_dir():
        return _inspect_workdir(path)
    file = formats.read(path, values=False)
    lines = [("file", str(path)), ("format", f"{file.format}, {path.stat().st_size:,} bytes")]
    try:
        found = identify.find(file)
    except ValueError as error:
        lines.append(("family", f"unknown; {identify.contents(file)}"))
        lines.append(("problem", str(error)))
        return _table(lines)
    lines += [
        ("family", found.family),
        ("names", _NAMINGS[found.layout.naming]),
        ("entry", found.entry or "(top level)"),
        ("prefixes", " ".join(found.prefixes) or "none"),
        ("extra entries", listed(found.extra) or "none"),
    ]
    for label, values in (
        ("other networks", found.others),
        ("beside the network", found.left_out),
        ("duplicates", found.duplicates),
    ):
        if values:
            lines.append((label, listed(values)))
    counts = collections.Counter(str(t.dtype).removeprefix("torch.") for t in found.state.values())
    lines.append(("tensors", ", ".join(f"{n} {dtype}" for dtype, n in counts.items())))
    try:
        if found.layout.naming == "transformers":
            beside.declare(found)
        inferred = identify.facts(found, declare.declared_size(found, {}))
    except ValueError as error:
        lines.append(("problem", str(error)))
        return _table(lines)
    lines += _sizes(inferred)
    try:
        if found.family == "vit":
            declare.vit_pool(found, inferred, {})
        if "pool" in inferred:
            lines.append(("pool", inferred["pool"]))
    except ValueError as error:
        lines.append(("undeclared", str(error)))
    try:
        settled = declare.declare(found, inferred, {})
    except ValueError as error:
        lines += [("undeclared", problem.strip()) for problem in str(error).splitlines()[1:]]
    else:
        for name, origin in settled.origin.items():
            if name in declare.DECLARABLE and name not in declare.CHECKED:  # told above
                lines.append((name, f"{getattr(settled.config, name)} ({origin})"))
    lines += [("problem", text) for text in declare.misfits(found, inferred)]
    if run := (file.declaration or {}).get("run"):
        seed, scores = run["config"].get("seed"), run["scores"]
        top1 = scores.get("val/top1")
        top1 = f", val/top1 {top1:.3f}" if isinstance(top1, float) else ""
        lines.append(("made by", f"a run of seed {seed} at step {run['step']:,}{top1}"))
    return _table(lines)


def _sizes(inferred: Mapping) -> list[tuple[str, str]]:
    shown = ["dim", "depth", "decoder_depth", "patch_size", "patches", "classes", "head_hidden"]
    shown += ["registers", "ffn", "layer_scale", "qkv_bias", "cls_norm"]
    labels = {"dim": "width", "patch_size": "patch"}
    lines = [(labels.get(name, name), str(inferred[name])) for name in shown if name in inferred]
    lines += [
        (name, str(inferred[name])) for name in ("attention", "nonlinearity") if name in inferred
    ]
    return lines


def _inspect_workdir(path: pathlib.Path) -> str:
    from crate_jax.convert import checkpoints

    checkpoint = checkpoints.read(path)
    lines = [("run", checkpoint.source), ("network", weights.describe(checkpoint.config))]
    lines += [(k, str(v)) for k, v in checkpoint.config.to_dict().items()]
    return _table(lines)


def _table(lines: list[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join(f"{label:<{width}}{printable(text)}" for label, text in lines)
