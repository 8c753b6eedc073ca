"""Files of tensors, read without trusting them and written whole or not at all.

The format is recognised by content, not by suffix. What a file holds is known before its values
are read: a leaf is a `Stored` tensor, which reads itself when asked (PyTorch's are read at once).
Archives are checked before they are unpacked, since a few bytes can claim to be a terabyte.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import stat
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from crate_jax import files
from crate_jax.convert import pytorch
from crate_jax.convert.text import listed, one_line, printable

_RUN: dict[str, Any] = {"config": {}, "step": 0, "history": [], "scores": {}}  # `--with-run`
DECLARATION = "crate_jax"  # the metadata entry that holds what tensors do not tell
TARGETS = (".safetensors", ".npz", ".pth", ".pth.tar")
# A file may unpack to this many bytes whatever its size, and beyond that to RATIO times its size.
# Trained weights do not compress, so no honest file comes near.
_SMALL, _RATIO = 64 << 20, 50
_SAFETENSORS_HEADER = 100_000_000  # bytes at most; a pickle's first eight say more
_SAFETENSORS_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    dtype: str  # NumPy's name, or the format's where NumPy has none
    read: Callable[[], np.ndarray]


@dataclasses.dataclass
class File:
    """What a file holds: nested dictionaries whose leaves are tensors or anything else plain."""

    path: pathlib.Path
    format: str  # "PyTorch", "safetensors" or "NumPy archive"
    tree: Mapping[str, Any]
    declaration: dict[str, Any] | None = None
    declared_in: str = "stored in the file"


def read(path: str | os.PathLike, values: bool = True) -> File:
    """Opens a file of tensors.

    Args:
        path: of the file.
        values: False where shapes are enough: a PyTorch file's values then stay on the disk too.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is not such a file, is damaged, would run code, or unpacks to far more
            than it is.
        ImportError: for a PyTorch file without PyTorch.
    """
    path = pathlib.Path(path)
    _check(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start[:4] == b"PK\x03\x04":
        return _read_archive(path, values)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _SAFETENSORS_HEADER:
        return _read_safetensors(path)
    if start.lstrip()[:1] == b"{":
        return _read_index(path, values)
    if start[:1] == b"\x80":  # a pickle, as PyTorch wrote them before version 1.6
        return File(path, "PyTorch", pytorch.read(path))
    raise ValueError(
        f"{path}: expected a PyTorch, safetensors or NumPy archive file, got {_strange(start)}"
    )


def _check(path: pathlib.Path) -> None:
    """Refuses what is no file or has hardly any of its bytes, before it is opened."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = files.kind(status.st_mode)
        raise ValueError(f"{path}: expected a file, got {kind}; save it as a file first")
    there = 512 * status.st_blocks  # 0 on file systems that do not say
    if status.st_size > max(_SMALL, _RATIO * there) and there:
        raise ValueError(
            f"{path}: refused, {status.st_size} bytes of which only {there} are on the disk (a "
            "sparse file); the download or copy is not complete, fetch it again"
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


def _read_archive(path: pathlib.Path, values: bool) -> File:
    """A zip file: PyTorch's own format, or NumPy's."""
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a whole archive, got one damaged or cut off ({one_line(error)}); "
            "fetch or copy the file again"
        ) from error
    unpacked, size = sum(e.file_size for e in entries), path.stat().st_size
    if unpacked > max(_SMALL, _RATIO * size):
        raise ValueError(
            f"{path}: expected weights, which hardly compress, got {size} bytes that claim to "
            f"unpack to {unpacked}; fetch the file from its source"
        )
    names = [e.filename for e in entries]
    if twice := len(names) - len(set(names)):
        raise ValueError(f"{path}: damaged, {twice} names stand in the archive more than once")
    if any(name.endswith(".npy") for name in names):
        return _read_npz(path, archive)
    archive.close()
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        if any(name.endswith("constants.pkl") for name in names):
            raise ValueError(
                f"{path}: expected tensors, got a TorchScript program; save its state_dict()"
            )
        # As they lie in the file, compressed ones would be read as something else.
        mapped = not values and all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        return File(path, "PyTorch", pytorch.read(path, mapped))
    raise ValueError(
        f"{path}: expected a PyTorch or NumPy archive, got a zip file of "
        f"{listed(names) or 'nothing'}"
    )


def _read_npz(path: pathlib.Path, archive: zipfile.ZipFile) -> File:
    arrays = {}
    for entry in archive.infolist():
        with _damage(path):
            with archive.open(entry) as file:
                stored = _npy_header(file, entry.file_size)
            read = functools.partial(_read_npy, path, archive, entry)
            arrays[entry.filename.removesuffix(".npy")] = Stored(*stored, read)
    text = archive.comment.decode("utf-8", "replace")
    return File(path, "NumPy archive", arrays, _declaration(path, text) if text else None)


@contextlib.contextmanager
def _damage(path: pathlib.Path):
    """NumPy and zipfile raise nearly anything for a malformed or encrypted entry."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: expected plain arrays, got some damaged or of another kind "
            f"({one_line(error)}); save them again by numpy.savez"
        ) from error


def _npy_header(file: Any, size: int) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array of an archive, once they agree with the bytes that are there."""
    shape, _, dtype = _parse_npy_header(file)
    claimed = dtype.itemsize
    for length in shape:
        if length < 0:
            raise ValueError(f"an array of shape {shape}")
        claimed *= length
    if claimed > size:
        raise ValueError(f"an array claims {claimed} bytes of {size}")
    # NumPy stores bfloat16 as two bytes of nothing in particular.
    return shape, "bfloat16" if dtype == np.dtype("V2") else dtype.name


def _parse_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format")
    header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    if header[2].hasobject:
        raise ValueError("an array of Python objects, which are never unpickled")
    return header


def _read_npy(path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with _damage(path), archive.open(entry) as file:
        shape, fortran, dtype = _parse_npy_header(file)
        data = file.read()  # to the end, where zipfile compares the checksum
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        array = array.astype(dtype.newbyteorder("="), copy=False)
        return array.view(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else array


def _read_safetensors(path: pathlib.Path) -> File:
    try:
        file = safetensors.safe_open(path, framework="np")
        metadata = file.metadata() or {}
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            header = file.get_slice(name)
            code = str(header.get_dtype())
            dtype = _SAFETENSORS_TYPES.get(code, code.lower())
            read = functools.partial(file.get_tensor, name)
            tensors[name] = Stored(tuple(header.get_shape()), dtype, read)
    except Exception as error:  # of its Rust layer
        raise ValueError(
            f"{path}: expected a whole safetensors file, got one damaged or cut off "
            f"({one_line(error)}); fetch or copy the file again"
        ) from error
    text = metadata.get(DECLARATION)
    return File(path, "safetensors", tensors, _declaration(path, text) if text else None)


def _read_index(path: pathlib.Path, values: bool) -> File:
    """The tensors of several files, named by an index as transformers writes it.

    Raises:
        ValueError: where it is no index, a part is not there, or lacks a tensor: all are named.
    """
    try:
        where = files.read_json(path)["weight_map"]
        parts = sorted({str(part) for part in where.values()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected weights or an index of their parts (weight_map), got other JSON"
        ) from error
    if outside := [p for p in parts if pathlib.Path(p).name != p or p.endswith(".json")]:
        raise ValueError(f"{path}: expected parts beside the index, got {listed(outside)}")
    if missing := [p for p in parts if not (path.parent / p).is_file()]:
        raise ValueError(
            f"{path}: expected its {len(parts)} parts beside it, got all but {listed(missing)}; "
            "fetch them too"
        )
    if not parts:
        raise ValueError(f"{path}: expected an index of weights, got one that names none")
    read_parts = {part: read(path.parent / part, values) for part in parts}
    lacking = [f"{n} ({part})" for n, part in where.items() if n not in read_parts[part].tree]
    if lacking:
        raise ValueError(
            f"{path}: expected every tensor in its part, got none of {listed(lacking)}; fetch the "
            "parts and their index from one place"
        )
    tree = {name: read_parts[part].tree[name] for name, part in where.items()}
    return File(path, f"{read_parts[parts[0]].format} in {len(parts)} parts", tree)


def _declaration(path: pathlib.Path, text: str) -> dict[str, Any] | None:
    try:
        declaration = json.loads(text)
        run = declaration.get("run", _RUN)
        if isinstance(declaration["config"], dict) and all(
            isinstance(run[name], type(empty)) for name, empty in _RUN.items()
        ):
            return declaration
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError(
        f"{path}: expected a declaration of this project as its {DECLARATION!r} metadata, got "
        "something else; convert the original file again"
    )


def is_tensor(value: object) -> bool:
    """Whether a leaf is a tensor."""
    return isinstance(value, Stored) or pytorch.is_tensor(value)


def to_array(name: str, tensor: Any) -> np.ndarray:
    """A leaf as a NumPy array of the same dtype, bit for bit.

    Raises:
        ValueError: for tensors of PyTorch that are not plain, and where the file is damaged.
    """
    return tensor.read() if isinstance(tensor, Stored) else pytorch.array(printable(name), tensor)


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

    The same arrays give the same bytes whenever they are written.

    Raises:
        ValueError: for an unknown suffix.
        ImportError: for the last two without PyTorch.
        OSError: where it cannot be written.
    """
    path, ending = pathlib.Path(path), suffix(path)
    text = "" if declaration is None else json.dumps(dict(declaration))
    if ending.startswith(".pth"):
        pytorch.library(f"writing {path.name}")
    try:
        with files.whole(path) as temporary:
            if ending == ".safetensors":
                _write_safetensors(temporary, state, text)
            elif ending == ".npz":
                with open(temporary, "wb") as file:
                    np.savez(file, **state)  # pyright: ignore[reportArgumentType]
                with zipfile.ZipFile(temporary, "a") as archive:
                    archive.comment = text.encode()
            else:
                pytorch.write(temporary, state, wrapped=ending == ".pth.tar")
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write_safetensors(
    path: pathlib.Path, state: Mapping[str, np.ndarray], declaration: str
) -> None:
    """The library's own writer orders metadata at random and keeps others from reading the file.

    Eight bytes with the header's length, the header as JSON, padded to eight bytes, the values:
    those of wide types first, as the library orders them, so that all are aligned.
    """
    codes = {dtype: code for code, dtype in _SAFETENSORS_TYPES.items()}
    metadata = {"format": "pt"} | ({DECLARATION: declaration} if declaration else {})
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    begin = 0
    for name in ordered:
        values = state[name]
        end = begin + values.nbytes
        code = codes[values.dtype.name]
        header[name] = {"dtype": code, "shape": values.shape, "data_offsets": (begin, end)}
        begin = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in ordered:
            file.write(state[name].tobytes())
