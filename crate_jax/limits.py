"""What the system lets a process have: soft limits are raised, hard ones said before work."""

import contextlib
import os
import pathlib
import resource
import sys

THREADS = 14  # of a command that computes, beside 8 a core
MORE_PROCESSES = "allow more processes (ulimit -u)"


def for_computing(threads: int) -> None:
    """Room for JAX's threads and ours; where the system refuses one to XLA, it aborts in C++.

    On a CPU XLA starts 4 a core and 9 (counted from 1 to 16 cores). In all `segment` had 18 on one
    core and 27 on two, `score` 19 and 29, `main` with its checkpoints 36 and 42.

    Args:
        threads: beside 8 a core.

    Raises:
        ValueError: fewer are allowed.
    """
    needed = threads + 8 * _cores()
    make_room_for_threads(needed, "this command", "raise it, or end other processes")


def for_numpy() -> None:
    """NumPy's OpenBLAS starts a thread a core, and sends us a SIGINT where the system refuses one.

    Where there is no room it is told to start none; called before NumPy is imported.
    """
    try:
        make_room_for_threads(_cores(), "NumPy", MORE_PROCESSES)
    except ValueError:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _cores() -> int:
    """Those that XLA and OpenBLAS count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_room_for_threads(needed: int, whose: str, remedy: str) -> None:
    """Lets this user have so many more threads, which count as processes.

    Raises:
        ValueError: as `make_room`.
    """
    if os.geteuid() != 0:  # whom the limit does not bind
        what, used = "processes (ulimit -u)", own_threads()
        make_room(resource.RLIMIT_NPROC, what, used, needed, whose, remedy)


def make_room(kind: int, what: str, used: int, needed: int, whose: str, remedy: str) -> None:
    """Raises the soft limit of a kind where less than what is needed is left of it.

    Raises:
        ValueError: the hard limit is below that.
    """
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(kind)
    )
    if soft >= used + needed:
        return
    if hard < used + needed:
        raise ValueError(
            f"{what}: expected a limit of at least {used + needed:,}, {used:,} in use and "
            f"{needed:,} for {whose}, got {hard:,}; {remedy}"
        )
    resource.setrlimit(kind, (used + needed, resource.getrlimit(kind)[1]))


def own_threads() -> int:
    """Threads of all processes of this user that can be seen; 0 where the system does not tell."""
    total = 0
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            if process.stat().st_uid == os.getuid():
                total += len(os.listdir(process / "task"))
    return total
