"""What one process decides by itself; two real ones are in end_to_end/test_multihost.py."""

import os

import jax
import numpy as np
import pytest
from absl import flags

from crate_jax import main
from crate_jax.training import distributed, loop


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_alone_nothing_is_started(joined):
    distributed.start()
    distributed.start("off")
    assert not joined


def test_several_slurm_tasks_join_by_themselves(joined, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.start()
    assert not joined
    monkeypatch.setenv("SLURM_NTASKS", "4")
    distributed.start()
    distributed.start("off")
    assert len(joined) == 1


def test_an_address_is_passed_on(joined):
    distributed.start(coordinator_address="a:1", num_processes=2, process_id=1, timeout=30)
    assert joined[0][0] == ("a:1", 2, 1)


def test_flags_that_contradict(joined):
    with pytest.raises(ValueError, match="distributed=off"):
        distributed.start("off", process_id=1)


def test_missing_flags_are_named():
    with pytest.raises(ValueError, match="--num_processes=N"):
        distributed.start("on", coordinator_address="localhost:1", num_processes=2, process_id=5)


def test_one_process_agrees_with_itself():
    distributed.check_equal(config="a", data=3)
    assert distributed.all_true(True)
    assert not distributed.all_true(False)
    with pytest.raises(OSError), distributed.together("reading"):
        raise OSError


def failing(text):
    """A save that failed because of what JAX says."""
    raise RuntimeError("saving failed") from jax.errors.JaxRuntimeError(text)


def test_a_lost_process_is_told_from_a_fault_of_our_own(monkeypatch):
    abandoned = []
    with pytest.raises(RuntimeError, match="saving"), distributed.raising_process_lost():
        failing("UNKNOWN: Gloo all-reduce failed")  # alone, nobody can be lost
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        pytest.raises(distributed.ProcessLost, match="JAX says: UNKNOWN: Gloo"),
        distributed.raising_process_lost(),
        distributed.raising_process_lost(lambda: abandoned.append(True)),
    ):
        failing("UNKNOWN: Gloo all-reduce failed")
    assert abandoned == [True]
    with pytest.raises(RuntimeError, match="saving"), distributed.raising_process_lost():
        failing("RESOURCE_EXHAUSTED: out of memory")
    with pytest.raises(ValueError, match="mine"), distributed.raising_process_lost():
        raise ValueError("mine")


def test_union_of_what_processes_have(monkeypatch):
    assert distributed.union([7, 3]) == [7, 3]
    gathered = []

    def process_allgather(mine):
        """As if another process had [3] as well as what this one has."""
        gathered.append(mine)
        other = np.array(3) if mine.ndim == 0 else np.array([3, -1, -1], np.int32)
        return np.stack([mine, other])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", process_allgather)
    assert distributed.union([7, 2**31 - 1]) == [3, 7, 2**31 - 1]
    assert gathered[1].tolist() == [7, 2**31 - 1, -1]


@pytest.mark.parametrize(
    ("error", "status", "patience"),
    [
        (distributed.ProcessLost("lost"), 1, 0.0),
        (distributed.ProcessFailed("failed"), 2, 10.0),
        (FileNotFoundError("vanished"), 2, 10.0),
        (KeyError("a fault of ours"), 1, 10.0),
    ],
)
def test_how_a_process_leaves(monkeypatch, error, status, patience):
    timers = []

    class Timer:
        def __init__(self, *args):
            timers.append(args)

        def start(self):
            pass

    def train(*args):
        raise error

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.threading, "Timer", Timer)
    monkeypatch.setattr(distributed, "start", lambda *args, **kwargs: None)
    monkeypatch.setattr(loop, "train", train)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if isinstance(error, KeyError):
        with pytest.raises(KeyError):
            main.main(["main"])
    else:
        assert main.main(["main"]) == status
    assert timers == [(patience, os._exit, (status,))]


@pytest.mark.parametrize("address", ["nowhere", "a:", "a:b", ":1", "a:65536", ""])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ValueError, match="coordinator_address: expected HOST:PORT of process 0"):
        distributed.start("on", coordinator_address=address, num_processes=2, process_id=0)
