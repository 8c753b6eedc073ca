"""Processes that read and decode images: what they need of the machine, how they start and end."""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator

import cv2

from crate_jax import limits
from crate_jax.data import shared_batches

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
# For each worker: pipes, semaphores, and batches in shared memory; 30 were counted.
_DESCRIPTORS, _SPARE_DESCRIPTORS = 32, 16
# Ours and its own, beside one a core for its linear algebra; and those of saving, not yet there.
_THREADS, _SPARE_THREADS = 10, 26
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}


class WorkerDied(RuntimeError):
    """A process that reads and decodes data has ended, or could not be started."""


def check(workers: int) -> int:
    """The number of processes; raises ValueError where it is none."""
    if not 0 <= workers <= 256:
        raise ValueError(f"workers: expected 0 to 256, got {workers}")
    return workers


def make_room(workers: int) -> None:
    """Sees to it that the system lets so many processes start; raises its soft limits for them.

    Raises:
        ValueError: a limit that cannot be raised is too low; says how many processes it allows.
    """
    whose, remedy = f"{workers} workers", "raise it, or lower config.data.workers"
    used, needed = len(os.listdir("/dev/fd")) + _SPARE_DESCRIPTORS, workers * _DESCRIPTORS
    limits.make_room(resource.RLIMIT_NOFILE, "open files (ulimit -n)", used, needed, whose, remedy)
    threads = workers * (_THREADS + min(os.cpu_count() or 1, 64)) + _SPARE_THREADS
    limits.make_room_for_threads(threads, whose, remedy)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it, the end of a process, or one that cannot start, is a `WorkerDied`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if getattr(error, "errno", None) in _EXHAUSTED or "can't start new thread" in str(error):
            raise WorkerDied(
                f"config.data.workers: expected a system that lets them start, got {error}; use "
                "fewer workers, or raise the limits of open files and processes (ulimit -n, -u)"
            ) from error
        if "terminated unexpectedly" not in str(error):
            raise
        raise WorkerDied(
            f"A data worker died ({error}) No batch was lost. Exit code -9 most often means "
            "that the machine ran out of memory: use fewer workers or a smaller batch, then "
            "run again with the same workdir to continue from the last checkpoint."
        ) from error


def start(worker_index: int, worker_count: int) -> None:
    """Runs first in every worker process."""
    del worker_index, worker_count
    cv2.setNumThreads(1)  # one core for each worker
    _keep_freed_memory()
    shared_batches.lend()
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group: the parent saves and stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # ... unless it was killed: then nobody else would end this process.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Lets glibc reuse the memory of images and batches instead of asking the kernel each time.

    Fresh pages cost a fault each, some 50 an image. Elsewhere than on glibc: no effect.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 2**30)


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def assert_no_backend() -> None:
    """Raises RuntimeError in a worker process that has initialised a JAX backend.

    A worker that touches JAX would take the accelerator, or its memory, away from the training
    process. `import jax` alone initialises nothing (Grain imports it). Outside workers: no effect.
    """
    if multiprocessing.parent_process() is None or "jax" not in sys.modules:
        return
    from jax._src import xla_bridge  # there is no public question that does not itself initialise

    if xla_bridge.backends_are_initialized():
        raise RuntimeError(
            "A data worker has initialised a JAX backend. Datasets and transforms must use NumPy "
            "only; look for jax or jax.numpy calls in them."
        )
