"""Read a checkpoint of anybody's, build the network, write it for somebody else."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from crate_jax import _version
from crate_jax.convert import (
    beside,
    declare,
    formats,
    identify,
    layouts,
    names,
    run_directory,
    shipped,
    weights,
)
from crate_jax.convert.layouts import Layout
from crate_jax.convert.text import listed
from crate_jax.models import base
from crate_jax.models.base import ImageModelConfig, Transformer
from crate_jax.models.positions import resize_positions

# Beside the config's fields, `load` takes these.
OPTIONS = ("published", "entry", "drop_head", "step")
_HEAD = ("head_norm", "head_hidden", "head")


@dataclasses.dataclass
class Checkpoint:
    """A network's weights by our paths, in the dtype of the file, and what they are."""

    config: ImageModelConfig
    params: dict[str, np.ndarray]
    origin: dict[str, str]  # where each field of the config comes from
    source: str
    unused: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    # Those of the notes that say what may not be meant.
    warnings: list[str] = dataclasses.field(default_factory=list)
    step: int | None = None  # of a run
    run: dict[str, Any] | None = None  # `run_directory.record`, where it is to be written too


def read(
    path: str | os.PathLike, assumed: Mapping[str, Any] | None = None, **declared: Any
) -> Checkpoint:
    """A checkpoint file, or the directory of a run, with what the user declares; see `load`.

    `assumed` holds, by config field, where neither the file nor the user says it.
    """
    declare.check_names(declared, OPTIONS)
    path = shipped.resolve(path)
    options: dict[str, Any] = {name: declared.pop(name, None) for name in OPTIONS}
    options["assumed"] = assumed
    path = beside.weights_of(path)
    if path.is_dir():
        checkpoint = _read_workdir(path, options, declared)
    else:
        if options["step"] is not None:
            raise ValueError(f"step: expected a run's directory, got the file {path}")
        checkpoint = _read_file(path, options, declared)
    if options["drop_head"]:
        _drop_head(checkpoint)
    return checkpoint


def _read_file(path: pathlib.Path, options: dict, declared: dict) -> Checkpoint:
    found = identify.find(formats.read(path), options["entry"])
    try:
        warning = beside.declare(found) if found.layout.naming == "transformers" else ""
        checkpoint = _of_found(found, options, declared)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    if found.left_out:
        checkpoint.notes.append(f"left out beside the network: {listed(found.left_out)}")
    if warning:
        checkpoint.warnings.append(warning)
    if found.others:
        checkpoint.warnings.append(
            f"read entry {found.entry!r}; others with a network: "
            f"{', '.join(repr(o) for o in found.others)} (choose with entry=, --entry)"
        )
    checkpoint.notes += checkpoint.warnings
    return checkpoint


def _of_found(found: identify.Found, options: dict, declared: dict) -> Checkpoint:
    """The checkpoint of a dictionary of weights; no value is read before all shapes fit."""
    if options["drop_head"]:
        _drop_head_tensors(found)
    if found.duplicates:
        raise ValueError(
            f"{len(found.duplicates)} names twice once prefixes are stripped: "
            f"{listed(found.duplicates)}"
        )
    inferred = identify.facts(found, declare.declared_size(found, declared))
    if found.family == "vit":
        inferred = declare.vit_pool(found, inferred, declared, options["assumed"])
    settled = _settle(found, inferred, declared, options)
    file_config = _at_files_size(settled)
    weights.check(found.state, file_config, found.layout)
    unused = found.layout.unused(file_config)
    wanted = {*weights.expected(file_config, found.layout), *unused} & set(found.state)
    state = {name: formats.to_array(name, found.state[name]) for name in sorted(wanted)}
    _check_finite({name: values for name, values in state.items() if name not in unused})
    params = weights.to_params(state, file_config, found.layout)
    carried = {name: state[name] for name in unused if name in state}
    _check_constant(carried, unused)
    notes = []
    if found.family == "dinov3":
        given = "as the file has them" if "rope_embed.periods" in found.state else "by the formula"
        notes.append(f"rotary periods: {given}")
    if settled.resized_from:
        stored = params["positions"]
        resized = resize_positions(
            np.asarray(stored, np.float32),
            settled.resized_from,
            settled.config.grid,
            settled.config.positions,
        )
        params["positions"] = np.asarray(resized).astype(stored.dtype)
        carried.pop("pos_embed", None)
        rows, columns = settled.resized_from
        notes.append(f"positions resampled from {rows} x {columns} patches")
    source = str(found.file.path)
    return Checkpoint(settled.config, params, settled.origin, source, carried, notes)


def _check_finite(weights: Mapping[str, np.ndarray], where: str = "") -> None:
    """Raises ValueError where a number is none in float32, with which all is computed."""
    with np.errstate(over="ignore"):
        bad = [n for n, x in weights.items() if not np.isfinite(np.asarray(x, np.float32)).all()]
    if bad:
        raise ValueError(
            f"{where}expected finite weights, got NaN or infinity in {listed(bad)} ({len(bad)} of "
            f"{len(weights)} tensors); the file is damaged or of a run that diverged, take another"
        )


def _check_constant(carried: Mapping[str, np.ndarray], unused: Mapping[str, Any]) -> None:
    """Raises ValueError where a bias of DINOv3 is masked otherwise than is computed here."""
    odd = [
        name
        for name, values in carried.items()
        if name.endswith("bias_mask") and not np.array_equal(values, unused[name])
    ]
    if odd:
        raise ValueError(
            f"{listed(odd)}: expected ones, zeros for the key, ones, got other values (NaN where "
            "the network was never initialised)"
        )


def _settle(found: identify.Found, inferred: dict, declared: Mapping, options: Mapping):
    """`declare.declare`, its complaints joined by what does not fit anyway."""
    try:
        return declare.declare(found, inferred, declared, options["published"], options["assumed"])
    except ValueError as error:
        more = declare.misfits(found, inferred)
        raise ValueError("\n  ".join([str(error), *more])) from error


def _at_files_size(settled: declare.Declared) -> ImageModelConfig:
    """The config with the image size that the file's positions have."""
    if not settled.resized_from:
        return settled.config
    patch = settled.config.patch_size
    rows, columns = settled.resized_from
    return dataclasses.replace(settled.config, image_size=(rows * patch, columns * patch))


def _drop_head_tensors(found: identify.Found) -> None:
    if heads := found.layout.head:
        found.state = {k: v for k, v in found.state.items() if not k.startswith(heads)}
    if found.file.declaration:
        found.file.declaration["config"].update(classes=0)


def _drop_head(checkpoint: Checkpoint) -> None:
    gone = [path for path in checkpoint.params if path.split("/")[0] in _HEAD]
    for path in gone:
        del checkpoint.params[path]
    changes: dict[str, Any] = {"classes": 0}
    if hasattr(checkpoint.config, "head_hidden"):
        changes["head_hidden"] = None
    checkpoint.config = dataclasses.replace(checkpoint.config, **changes)
    checkpoint.notes.append("head dropped as asked")


def _read_workdir(path: pathlib.Path, options: dict, declared: dict) -> Checkpoint:
    for name in ("published", "entry"):
        if options[name] is not None:
            raise ValueError(f"{name}: expected a file, got the directory {path}")
    params, config, step = run_directory.read(path, options["step"])
    flat = {p: np.asarray(x) for p, x in names.flatten(params)}
    _check_finite(flat, f"{path} at step {step}: ")
    given = {k: declare.plain(k, v) for k, v in declared.items() if v is not None}
    wrong = [
        f"{name}: declared as {value!r}, but the run's config says {getattr(config, name, None)!r}"
        for name, value in given.items()
        if name not in ("image_size", "positions") and getattr(config, name, None) != value
    ]
    if wrong:
        raise ValueError(f"{path}:\n  " + "\n  ".join(wrong))
    notes = [f"step {step}"]
    if "positions" in given:
        config = dataclasses.replace(config, positions=given["positions"])
    if "image_size" in given and "positions" not in flat:
        config = dataclasses.replace(config, image_size=given["image_size"])
    elif "image_size" in given and config.positions != "notebook":
        wanted = dataclasses.replace(config, image_size=given["image_size"])
        flat["positions"] = np.asarray(
            resize_positions(flat["positions"], config.grid, wanted.grid, config.positions)
        )
        notes.append(f"positions resampled from {config.grid[0]} x {config.grid[1]} patches")
        config = wanted
    origin = dict.fromkeys(declare.DECLARABLE, "the run's config")
    return Checkpoint(config, flat, origin, f"{path} at step {step}", notes=notes, step=step)


def load(path: str | os.PathLike, **declared: Any) -> Transformer:
    """A network with the weights of a checkpoint; `crate_jax.load`.

    Args:
        path: "scenes", the network that ships; the directory of a run of ours; or a file of CRATE,
            CRATE-alpha, CRATE-MAE, a ViT in DINO's, DINOv2's, timm's, torchvision's or
            transformers' names, or a DINOv3 in its authors' or transformers': `.safetensors` (or
            the index of its parts), `.npz` (CRATE-alpha's JAX names too), or, with the `torch`
            extra, `.pth`, `.pth.tar`.
            Wrappers' prefixes, an optimiser beside the weights and the like are seen through. The
            format is recognised by content. config.json beside transformers' weights is read, and
            their directory may be given.
        **declared: what tensor shapes do not tell, unless the file says it (those written by
            `python -m crate_jax.convert` to `.safetensors` and `.npz` do, and runs of ours):
            `heads` (always needed but for one head without output map and for flax files);
            `pool`, "cls" or "mean", of a ViT also "last_vit"; `image_size`, an int or (height,
            width): the grid of the file's positions where their number fits, else the size that
            they are resampled to;
            `positions`, "size", "dino", "antialias" or "notebook", the rule of
            resampling; `lambd` and the other fields in `declare.DECLARABLE`, which else have the
            defaults of the authors' code.
            `published` names an entry of `published.PUBLISHED` that says them all. `entry` chooses
            among several networks in a file ("student"). `drop_head=True` leaves the head out.
            `step` chooses a step of a run.

    Returns:
        The network, parameters in float32. `model.config` says what it is.

    Raises:
        ValueError: what is undeclared, contradictory, missing, unexpected, duplicate or misshaped,
            all at once; a damaged file, one that would run code, or one that is something else.
            Nothing is loaded in part.
        FileNotFoundError: where there is nothing at the path.
        ImportError: for a PyTorch file without PyTorch.
    """
    checkpoint = read(path, **declared)
    for warning in checkpoint.warnings:
        logging.warning("%s: %s", checkpoint.source, warning)
    return weights.build(checkpoint.params, checkpoint.config)


def save(
    model: Transformer | Checkpoint,
    path: str | os.PathLike,
    unused: Mapping | None = None,
    declared: bool = True,
) -> None:
    """Writes a network with the authors' names and layout, for their classes' `strict=True`.

    Args:
        model: a network, or a checkpoint as `read`.
        path: where to. `.safetensors`; `.npz` (CRATE-alpha in its authors' JAX names, else PyTorch
            names); with the `torch` extra `.pth`, a bare state dict, and `.pth.tar`,
            `{"state_dict": ...}`. The first two carry the declaration, so that `load` needs none.
        unused: tensors of CRATE-MAE's class that nothing uses; made up where absent.
        declared: False leaves the declaration out: tensors alone, as the authors' files are.

    Raises:
        ValueError: for an unknown suffix.
        ImportError: for the last two without PyTorch.
    """
    if isinstance(model, Checkpoint):
        config, params, unused = model.config, model.params, unused or model.unused
        source = pathlib.Path(model.source).name  # where it lay is nobody's business
    else:
        config, source = model.config, "memory"
        params = {p: np.asarray(x) for p, x in names.flatten(base.split(model)[1])}
    state = weights.to_state(params, config, layout_of(config, path), unused)
    declaration = {"config": config.to_dict(), "version": _version.__version__, "source": source}
    if isinstance(model, Checkpoint) and model.run:
        declaration["run"] = model.run
    formats.write(path, state, declaration if declared else None)


def layout_of(config: ImageModelConfig, path: str | os.PathLike) -> Layout:
    """The layout that a target gets: the authors' JAX one for CRATE-alpha's `.npz`."""
    flax = formats.suffix(path) == ".npz" and config.family == "crate_alpha"
    return layouts.of(config.family, "flax" if flax else "pytorch")
