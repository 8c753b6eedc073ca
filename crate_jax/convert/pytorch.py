"""PyTorch's files: read by its weights-only unpickler, which refuses code before it runs.

All that imports PyTorch is here, and imports it when it is called: the `torch` extra.
"""

import argparse
import contextlib
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from crate_jax.convert.text import one_line


def library(purpose: str) -> types.ModuleType:
    """PyTorch.

    Raises:
        ImportError: how to install it.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs PyTorch: pip install 'crate-jax[torch]' (safetensors and npz files "
            "never need it)"
        ) from error
    return torch


class _Type:
    """Stands in for numpy.dtype where a scalar is unpickled: only the name is kept."""

    def __init__(self, name: str, *options: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: the one is little-endian, the other is of no account."""


def _scalar(kind: _Type, data: bytes = b"") -> float:
    """A NumPy number, such as `best_acc` beside the weights."""
    dtype = np.dtype(kind.name)
    if dtype.kind not in "biuf" or not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"a NumPy scalar of type {dtype}")
    return np.frombuffer(data, dtype)[0].item()


def _inert() -> list[Any]:
    """What may stand beside tensors: a command line (DINO's and MAE's), and NumPy numbers."""
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    return [
        argparse.Namespace,
        (_Type, "numpy.dtype"),
        *((_scalar, f"{module}.scalar") for module in modules),
    ]


@contextlib.contextmanager
def _refusing(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever PyTorch raises into one line; its advice to unpickle anything is not ours."""
    try:
        yield
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        if called:
            raise ValueError(
                f"{path}: refused, the pickle calls {called[1]}; only tensors and plain containers "
                "are read. If you trust its origin, load it in PyTorch and save its state_dict()"
            ) from None
        raise ValueError(f"{path}: refused or damaged pickle ({_reason(error)})") from None
    except Exception as error:  # PyTorch raises whatever its C++ and pickle layers raise
        raise ValueError(f"{path}: damaged or cut off ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
    line = one_line(found[1] if found else str(error))
    advice = re.search(r"weights[_ ]only", line, re.IGNORECASE)
    return type(error).__name__ if advice or not line else line


def read(path: pathlib.Path, mapped: bool = False) -> Mapping[str, Any]:
    """The tree of a PyTorch file.

    Args:
        path: of a zip archive or a pickle.
        mapped: leave the values in the file; for archives that are not compressed. They are not
            checked against their checksums then.

    Raises:
        ValueError: where it would run code, is damaged, or is no dictionary.
        ImportError: without PyTorch.
    """
    torch = library(f"reading {path.name}")
    inert = torch.serialization.safe_globals(_inert())
    with _refusing(path), inert, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols and types of storages
        tree = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{path}: expected a dictionary of tensors, got {type(tree).__name__}; save a "
            "state_dict()"
        )
    return tree


def is_tensor(value: object) -> bool:
    """Whether something is a PyTorch tensor; PyTorch need not be there to say no."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "untyped_storage")


def array(name: str, tensor: Any) -> np.ndarray:
    """A tensor as a NumPy array of the same dtype, bit for bit.

    Raises:
        ValueError: for tensors that are not plain (sparse, quantised, without values, one of
            several parts), and for views that claim more elements than are stored.
    """
    import torch

    kind = type(tensor).__name__
    try:
        if tensor.is_meta:
            raise ValueError(f"{name}: expected values, got a meta tensor, which has none")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = f"{tensor.layout}, {tensor.dtype}"
            raise ValueError(f"{name}: expected a dense tensor, got {kind}")
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > stored:
            raise ValueError(
                f"{name}: refused, {tensor.numel()} elements over a storage of {stored} bytes"
            )
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{name}: expected a plain tensor, got {kind} ({_reason(error)}); save the whole "
            "network's state_dict() on one device"
        ) from None


def write(path: pathlib.Path, state: Mapping[str, np.ndarray], wrapped: bool) -> None:
    """Writes a state dict, or with `wrapped` `{"state_dict": ...}`.

    Raises:
        OSError: where it cannot be written.
    """
    import torch

    tensors = {name: _tensor(torch, values) for name, values in state.items()}
    try:
        # Into an open file: given a name, PyTorch puts it into the archive, and here it is another
        # at every call.
        with path.open("wb") as file:
            torch.save({"state_dict": tensors} if wrapped else tensors, file)
    except RuntimeError as error:  # of its C++ layer, where a write failed
        raise OSError(_reason(error)) from error


def _tensor(torch: types.ModuleType, values: np.ndarray) -> Any:
    values = np.array(values)  # writable, contiguous and our own
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
