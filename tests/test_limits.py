"""Where the system allows too few threads, a command says so before XLA aborts."""

import os
import resource
import subprocess
import sys

import pytest

from crate_jax import command_line, limits


@pytest.mark.parametrize(("allowed", "status"), [(20, 2), (4096, 0)])
def test_a_command_that_computes_asks_for_its_threads_first(monkeypatch, capsys, allowed, status):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits, "own_threads", lambda: 3)
    monkeypatch.setattr(limits, "_cores", lambda: 2)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10, allowed))
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: raised.append(pair))
    worked = []
    work = lambda: worked.append(1) or 0  # noqa: E731
    assert command_line.run(work) == status
    assert command_line.run(work, threads=0) == 0
    if status:
        assert (worked, raised) == ([1], [])
        assert capsys.readouterr().err == (
            "error: processes (ulimit -u): expected a limit of at least 33, 3 in use and 30 for "
            "this command, got 20; raise it, or end other processes\n"
        )
    else:
        assert (worked, raised) == ([1, 1], [(33, 4096)])


def test_root_is_not_bound(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1))
    limits.for_computing(14)


@pytest.mark.parametrize(("allowed", "told"), [(4, "1"), (4096, None)])
def test_numpy_is_told_to_start_no_threads_where_there_is_no_room(allowed, told):
    """Before it is imported: OpenBLAS would end a command by SIGINT, as if by Ctrl-C."""
    code = f"""
import os, resource, sys
os.geteuid = lambda: 1000
resource.getrlimit = lambda kind: ({allowed}, {allowed})
sys.argv = ["-m"]  # as while `python -m` looks up a command
import crate_jax
from crate_jax import limits
print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))
"""
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == f"False {told}\n", done.stderr
