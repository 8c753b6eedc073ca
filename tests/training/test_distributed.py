"""What one process decides by itself; two real ones are in end_to_end/test_multihost.py."""

import jax
import pytest

from crate_jax.training import distributed


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
