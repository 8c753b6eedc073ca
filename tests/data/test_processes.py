"""Processes that read and decode: what the system must let them have."""

import errno
import os
import resource

import pytest

from crate_jax import limits as system_limits
from crate_jax.data import processes


def limits(monkeypatch, soft, hard):
    """Both limits; gives what they are set to."""
    new = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: new.append(pair))
    return new


def test_too_few_descriptors_are_said_before_any_process_starts(monkeypatch):
    limits(monkeypatch, 64, 64)
    with pytest.raises(ValueError, match=r"open files .*for 4 workers, got 64; .*lower .*workers"):
        processes.make_room(4)


def test_too_few_processes_are_said_before_any_starts(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "listdir", lambda path: [])  # no descriptors in use
    limits(monkeypatch, 200, 200)
    monkeypatch.setattr(system_limits, "own_threads", lambda: 195)
    with pytest.raises(ValueError, match=r"-u\): .*195 in use and .* 2 workers, got 200"):
        processes.make_room(2)


def test_soft_limit_is_raised_where_the_hard_one_allows(monkeypatch):
    new = limits(monkeypatch, 64, 4096)
    processes.make_room(4)
    assert new
    assert all(64 < soft < 4096 and hard == 4096 for soft, hard in new)
    limits(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    processes.make_room(256)


def test_own_threads_are_counted():
    assert system_limits.own_threads() >= 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_cannot_start_is_one_line(error):
    match = r"use fewer workers, .* \(ulimit -n, -u\)"
    with pytest.raises(processes.WorkerDied, match=match), processes.watched():
        raise error


def test_other_errors_go_on():
    with pytest.raises(FileNotFoundError), processes.watched():
        raise FileNotFoundError(errno.ENOENT, "gone")
