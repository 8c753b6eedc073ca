"""Batches from worker processes in shared memory that is used again.

Grain moves an array by copying it into a new piece of shared memory, which the receiver unlinks:
the kernel zeroes and maps each of its pages, 37 for an image of 224 px, anew. Here a worker keeps a
few pieces (`Lender`), stacks a batch into one that is free, and sends where it is; the receiver
(`Borrower`) maps each piece once and hands out arrays over it without copying. When nothing refers
to such an array any longer, a byte behind it says so, and the worker may write there again.

The pieces have no name in any file system (memfd of Linux), so they vanish with the processes that
use them, however these end.
"""

import dataclasses
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np

_FREE, _LENT = 0, 1  # the byte behind the array
_LEAST = 1 << 16  # bytes; smaller arrays are not worth a piece


@dataclasses.dataclass(frozen=True)
class Lent:
    """Sent in place of an array: the process and the descriptor of the piece that holds it."""

    pid: int
    descriptor: int
    shape: tuple[int, ...]
    dtype: str


class Lender:
    """The sender's side; one in each worker process."""

    def __init__(self):
        self._pieces: dict[int, mmap.mmap] = {}  # by descriptor

    def stack(self, rows: Sequence[np.ndarray]) -> np.ndarray | Lent:
        """`np.stack(rows)`, in shared memory unless it is small or the system has no memfd."""
        size = len(rows) * rows[0].nbytes
        if size < _LEAST or not hasattr(os, "memfd_create"):
            return np.stack(rows)
        shape, dtype = (len(rows), *rows[0].shape), rows[0].dtype
        descriptor = self._free(size)
        piece = self._pieces[descriptor]
        np.stack(rows, out=np.ndarray(shape, dtype, piece))
        piece[size] = _LENT
        return Lent(os.getpid(), descriptor, shape, dtype.str)

    def _free(self, size: int) -> int:
        for descriptor, piece in self._pieces.items():
            if len(piece) == size + 1 and piece[size] == _FREE:
                return descriptor
        descriptor = os.memfd_create("batch")
        os.truncate(descriptor, size + 1)
        self._pieces[descriptor] = mmap.mmap(descriptor, size + 1)
        return descriptor


class Borrower:
    """The receiver's side; one for each set of workers."""

    def __init__(self):
        self._pieces: dict[tuple[int, int], mmap.mmap] = {}

    def open(self, value: np.ndarray | Lent) -> np.ndarray:
        """The array; of anything but a `Lent`, the value itself.

        The memory is the array's own for as long as it, or a view of it, lives.
        """
        if not isinstance(value, Lent):
            return value
        key = (value.pid, value.descriptor)
        if key not in self._pieces:
            with open(f"/proc/{value.pid}/fd/{value.descriptor}", "r+b", buffering=0) as file:
                self._pieces[key] = mmap.mmap(file.fileno(), 0)
        piece = self._pieces[key]
        array = np.ndarray(value.shape, value.dtype, piece)
        weakref.finalize(array, piece.__setitem__, array.nbytes, _FREE).atexit = False
        return array


_lender: Lender | None = None


def lend() -> None:
    """From now on `stack` of this process puts what it stacks into shared memory."""
    global _lender
    _lender = Lender()


def stack(rows: Sequence[np.ndarray]) -> np.ndarray | Lent:
    """`np.stack(rows)`: in shared memory in a process that lends."""
    return np.stack(rows) if _lender is None else _lender.stack(rows)
