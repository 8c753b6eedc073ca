"""Files of tensors, read without trusting them and written whole or not at all.

The format is told by content, not by suffix. PyTorch files go through PyTorch's weights-only
unpickler: a pickle that names anything but tensors and plain containers is refused before it runs.
Archives are checked before they are unpacked, since a few bytes can claim to be a terabyte.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from crate_jax.files import whole

DECLARATION = "crate_jax"  # the metadata entry that holds what tensors do not tell
TARGETS = (".safetensors", ".npz", ".pth", ".pth.tar")
# An archive may unpack to this many bytes whatever its size, and beyond that to RATIO times its
# size. Trained weights do not compress, so no honest file comes near.
_SMALL, _RATIO = 64 << 20, 50
_SAFETENSORS_HEADER = 100_000_000  # bytes at most; a pickle's first eight say more


@dataclasses.dataclass
class File:
    """What was read: nested dictionaries whose leaves are tensors or anything else plain."""

    path: pathlib.Path
    format: str  # "PyTorch", "safetensors" or "NumPy archive"
    tree: Mapping[str, Any]
    declaration: dict[str, Any] | None = None


def read(path: str | os.PathLike) -> File:
    """Reads a file of tensors.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is not such a file, is damaged, would run code, or unpacks to far more
            than it is.
        ImportError: for a PyTorch file without PyTorch.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    with path.open("rb") as file:
        start = file.read(512)
    if start[:4] == b"PK\x03\x04":
        return _read_archive(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _SAFETENSORS_HEADER:
        return _read_safetensors(path)
    if start[:1] == b"\x80":  # a pickle, as PyTorch wrote them before version 1.6
        return File(path, "PyTorch", _read_torch(path))
    raise ValueError(
        f"{path}: expected a PyTorch, safetensors or NumPy archive file, got {_strange(start)}"
    )


def _strange(start: bytes) -> str:
    if not start:
        return "an empty file; the download failed, fetch it again"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "an HTML page: a download page was saved in place of the file; open it in a browser, "
            "follow its link, and save that"
        )
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull` where it came from"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras), which is not read here"
    with contextlib.suppress(UnicodeDecodeError):
        head = start.decode()
        if head.isprintable() or "\n" in head:
            return f"text that begins with {head.splitlines()[0][:40]!r}"
    return f"something that begins with bytes {start[:8].hex(' ')}; is it compressed or cut off?"


def _read_archive(path: pathlib.Path) -> File:
    """A zip file: PyTorch's own format, or NumPy's."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            comment = archive.comment
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged or cut off ({error}); fetch or copy the file again"
        ) from error
    unpacked, size = sum(e.file_size for e in entries), path.stat().st_size
    if unpacked > max(_SMALL, _RATIO * size):
        raise ValueError(
            f"{path}: refused, {size} bytes claim to unpack to {unpacked}; weights do not compress "
            "like that"
        )
    names = [e.filename for e in entries]
    if any(name.endswith(".npy") for name in names):
        return File(path, "NumPy archive", *_read_npz(path, entries, comment))
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        if any(name.endswith("constants.pkl") for name in names):
            raise ValueError(
                f"{path}: expected tensors, got a TorchScript program; save its state_dict()"
            )
        return File(path, "PyTorch", _read_torch(path))
    raise ValueError(
        f"{path}: expected a PyTorch or NumPy archive, got a zip file of "
        f"{', '.join(names[:3]) or 'nothing'}"
    )


def _read_npz(path, entries, comment) -> tuple[dict[str, np.ndarray], dict | None]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read_npy(file, entry.file_size)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or not plain arrays ({_line(error)})") from error
    return arrays, _declaration(path, comment.decode("utf-8", "replace")) if comment else None


def _read_npy(file, size: int) -> np.ndarray:
    """One array of an archive, once its header agrees with the bytes that are there."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format")
    header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are never unpickled")
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize > size:
        raise ValueError(f"an array claims {count * dtype.itemsize} bytes of {size}")
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("an array is cut off")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    # NumPy stores bfloat16 as two bytes of nothing in particular.
    return array.view(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else array


def _read_safetensors(path: pathlib.Path) -> File:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged or cut off ({_line(error)})") from error
    text = metadata.get(DECLARATION)
    return File(path, "safetensors", tensors, _declaration(path, text) if text else None)


def _declaration(path: pathlib.Path, text: str) -> dict[str, Any] | None:
    try:
        declaration = json.loads(text)
        if isinstance(declaration["config"], dict):
            return declaration
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"{path}: its {DECLARATION!r} metadata is not a declaration written by this project; "
        "convert the original file again"
    )


def _read_torch(path: pathlib.Path) -> Mapping[str, Any]:
    torch = _torch(f"reading {path.name}")
    import pickle

    try:
        # DINO's and MAE's training checkpoints hold their command line; a Namespace is inert.
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise ValueError(
                f"{path}: refused, the pickle calls {found[1]}; only tensors and plain containers "
                "are read. If you trust its origin, load it in PyTorch and save its state_dict()"
            ) from error
        raise ValueError(f"{path}: refused or damaged pickle ({_line(error)})") from error
    except Exception as error:  # PyTorch raises whatever its C++ and pickle layers raise
        raise ValueError(f"{path}: damaged or cut off ({_line(error)})") from error
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{path}: expected a dictionary of tensors, got {type(tree).__name__}; save a "
            "state_dict()"
        )
    return tree


def _line(error: BaseException) -> str:
    """An error of a library in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _torch(purpose: str):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs PyTorch: pip install 'crate-jax[torch]' (safetensors and npz files "
            "never need it)"
        ) from error
    return torch


def is_tensor(value: object) -> bool:
    """Whether a leaf is a NumPy array or a PyTorch tensor."""
    torch_made = type(value).__module__.split(".")[0] == "torch"
    return isinstance(value, np.ndarray) or (torch_made and hasattr(value, "untyped_storage"))


def to_array(name: str, tensor: Any) -> np.ndarray:
    """A tensor as a NumPy array of the same dtype, bit for bit.

    Raises:
        ValueError: for tensors that are not plain (sparse, quantised), and for views that claim
            more elements than are stored.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{name}: expected a dense tensor, got {tensor.layout}, {tensor.dtype}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{name}: refused, {tensor.numel()} elements over a storage of "
            f"{tensor.untyped_storage().nbytes()} bytes"
        )
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def suffix(path: str | os.PathLike) -> str:
    """The one of `TARGETS` that a name ends in.

    Raises:
        ValueError: for any other ending.
    """
    name = pathlib.Path(path).name
    for ending in sorted(TARGETS, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    raise ValueError(
        f"target {path}: expected a name ending in {', '.join(TARGETS)}, or in .stablehlo for a "
        "program without Python"
    )


def write(
    path: str | os.PathLike,
    state: Mapping[str, np.ndarray],
    declaration: Mapping[str, Any] | None,
) -> None:
    """Writes named arrays in the format of the suffix.

    `.safetensors` carries the declaration in its metadata, `.npz` in the archive's comment, so that
    the arrays are exactly the authors'. `.pth` is a bare state dict, `.pth.tar` is
    `{"state_dict": ...}`: neither carries it. None writes the arrays alone.

    Raises:
        ValueError: for an unknown suffix.
        ImportError: for the last two without PyTorch.
        OSError: where it cannot be written.
    """
    path, ending = pathlib.Path(path), suffix(path)
    text = "" if declaration is None else json.dumps(dict(declaration))
    with whole(path) as temporary:
        if ending == ".safetensors":
            metadata = {"format": "pt"} | ({DECLARATION: text} if text else {})
            safetensors.numpy.save_file(dict(state), temporary, metadata=metadata)
        elif ending == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, **state)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = text.encode()
        else:
            torch = _torch(f"writing {path.name}")
            tensors = {name: _to_tensor(torch, array) for name, array in state.items()}
            torch.save({"state_dict": tensors} if ending == ".pth.tar" else tensors, temporary)


def _to_tensor(torch, array: np.ndarray):
    array = np.array(array)  # writable, contiguous and our own
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
