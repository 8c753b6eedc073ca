"""Signals as requests."""

import os
import signal
import threading

import pytest

from crate_jax.training import stop
from crate_jax.training.stop import StopSignal

pytestmark = pytest.mark.usefixtures("signals_heard")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGHUP", 0), ("SIGINT", 130)])
def test_a_signal_is_a_request_and_handlers_come_back(name, status):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopSignal() as request:
        assert not request.requested(1)
        assert not request.within_step()
        os.kill(os.getpid(), number)
        assert request.requested(2)
        assert request.within_step()
        assert (request.name, request.status) == (name, status)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher and a scheduler may both send one
        assert request.name == name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_obeyed_at_once():
    with StopSignal() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_closed_terminal_is_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.requested(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopSignal() as request:
            seen.append((signal.getsignal(signal.SIGTERM), request.requested(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_several_processes_stop_where_jax_says(monkeypatch):
    """SIGTERM stays with JAX's preemption service; another signal is passed on to it."""
    agreed, received = [], []
    monkeypatch.setattr(stop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        stop.multihost_utils, "reached_preemption_sync_point", lambda step: step in agreed
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopSignal() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == [signal.SIGTERM]
            assert not request.requested(1)
            assert not request.within_step()
            agreed.append(2)
            assert request.requested(2)
            assert (request.name, request.status) == ("SIGHUP", 0)
        with StopSignal() as other:
            assert other.requested(2)
            assert other.name == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, before)
