"""Several processes as one run: starting them, and deciding together.

Every process runs the same program on its own hosts' devices. What one of them sees alone (a
signal, a missing file, another config) must not make it leave the others waiting in a collective
operation, so such things are agreed upon here. With one process nothing here costs anything.
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

MODES = ("auto", "on", "off")
# What JAX raises here for this process's own fault, another one being there or not.
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


class ProcessFailed(RuntimeError):
    """Another process of the run stopped, or the processes do not belong to one run."""


class ProcessLost(ProcessFailed):
    """Another process of the run is gone, without a word to this one.

    A launcher may start all of them again, as after a crash: not the status of a user's error.
    """

    exit_status = 1


def start(
    mode: str = "auto",
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the other processes; must come before anything that touches a device.

    Args:
        mode: "on" joins, with what is not given found by JAX (TPU pods, Slurm, MPI); "off" does
            not; "auto" joins where an address is given or Slurm says that there are several tasks.
        coordinator_address: HOST:PORT of process 0.
        num_processes: how many processes.
        process_id: this one, from 0.
        timeout: seconds to wait for all of them.
        heartbeat_timeout: seconds without a sign of life after which a process counts as dead, and
            the others are ended.

    Where not all processes join in time, the process ends with a message and status 2.

    Raises:
        ValueError: where the flags do not fit together or do not tell enough.
    """
    given = (coordinator_address, num_processes, process_id)
    if mode == "off" and any(value is not None for value in given):
        raise ValueError("--distributed=off: expected no coordinator_address and the like")
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    several = any(value is not None for value in given) or int(tasks) > 1
    if mode == "off" or (mode == "auto" and not several):
        return
    port = re.fullmatch(
        r".+:(\d{1,5})", "host:1" if coordinator_address is None else coordinator_address
    )
    if port is None or int(port[1]) > 65535:
        raise ValueError(
            f"--coordinator_address: expected HOST:PORT of process 0, got {coordinator_address!r}"
        )
    # JAX ends the process by an abort when its own limit is over; ours comes first, with a message.
    watchdog = threading.Timer(timeout, _give_up, (timeout, process_id, coordinator_address))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: {error} Outside TPU pods, Slurm and MPI give --coordinator_address="
            "HOST:PORT of process 0, --num_processes=N and --process_id=0 ... N-1"
        ) from error
    finally:
        watchdog.cancel()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )


def _give_up(timeout: int, process_id: int | None, address: str | None) -> None:
    """Ends this process, which waits within JAX for the others and cannot be told otherwise."""
    known = "" if process_id is None else f" (this is process {process_id}, coordinator {address})"
    print(
        f"\nerror: not all processes joined within {timeout} s{known}. Start all of them, check "
        "that they reach the coordinator, or raise --initialization_timeout",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


@contextlib.contextmanager
def raising_process_lost(abandon: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around collective work: where it fails because another process is gone, this one ends too.

    Args:
        abandon: called first; must end whatever would wait for the others.

    Raises:
        ProcessLost: for JAX's error, also where it is the cause of another one.
    """
    try:
        yield
    except ProcessFailed:
        raise
    except Exception as error:
        chain: list[BaseException] = []
        while error is not None and error not in chain:
            chain.append(error)
            error = error.__cause__ or error.__context__
        failed = [e for e in chain if isinstance(e, jax.errors.JaxRuntimeError)]
        if not failed or jax.process_count() == 1 or str(failed[0]).startswith(_OWN_FAULT):
            raise
        abandon()
        raise ProcessLost(
            f"process {jax.process_index()} of {jax.process_count()} lost another one, whose "
            "output may say why. Start all of them again by the same command to resume from the "
            f"last save. JAX says: {str(failed[0]).strip().splitlines()[0][:300]}"
        ) from chain[0]


def alone() -> bool:
    """Whether this is the only process of the run."""
    return jax.process_count() == 1


def leave(status: int, patience: float = 10.0) -> None:
    """Before a process ends by an error: the others must not wait for it, nor it for them.

    At its end JAX waits for all, for minutes. Where they are not there after `patience` seconds,
    this process goes alone, and their next collective operation fails instead of waiting.
    """
    if jax.process_count() > 1:
        sys.stdout.flush()
        alone = threading.Timer(patience, os._exit, (status,))
        alone.daemon = True
        alone.start()


def check_equal(**values: Any) -> None:
    """Raises ProcessFailed on every process unless all have the same values.

    Args:
        **values: anything whose text says all about it, by name.
    """
    if jax.process_count() == 1:
        return
    sums = [hashlib.sha256(str(value).encode()).digest() for value in values.values()]
    gathered = multihost_utils.process_allgather(np.frombuffer(b"".join(sums), np.uint8))
    gathered = np.asarray(gathered).reshape(jax.process_count(), len(values), -1)
    differ = (gathered != gathered[:1]).any(axis=-1)
    if differ.any():
        names = [name for name, odd in zip(values, differ.any(axis=0), strict=True) if odd]
        mine = ", ".join(f"{name} {str(values[name])[:80]}" for name in names)
        raise ProcessFailed(
            f"expected the same {', '.join(names).replace('_', ' ')} on all processes; process(es) "
            f"{np.flatnonzero(differ.any(axis=1)).tolist()} differ from process 0. This is process "
            f"{jax.process_index()}: {mine}"
        )


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Around work that every process does by itself: it succeeds on all of them, or all stop.

    Raises:
        ProcessFailed: where it failed on another process; its own error here.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    failed = np.asarray(multihost_utils.process_allgather(np.array(problem is not None)))
    if problem is not None:
        raise problem
    if failed.any():
        raise ProcessFailed(
            f"{what} failed on process(es) {np.flatnonzero(failed).tolist()}; their output says why"
        )


def all_true(value: bool) -> bool:
    """Whether it is true on every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def union(values: list[int]) -> list[int]:
    """Integers from 0 below 2^31 that any process has, ascending; with one process, as they are."""
    if jax.process_count() == 1:
        return values
    most = int(np.max(multihost_utils.process_allgather(np.array(len(values), np.int32))))
    mine = np.full(most, -1, np.int32)
    mine[: len(values)] = values
    everyones = np.unique(multihost_utils.process_allgather(mine))
    return everyones[everyones >= 0].tolist()


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
