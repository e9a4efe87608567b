"""Signals become a stop request inside a run, and are what they were outside of it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raylign.actors.waiting import Stop
from raylign.controllers.stopping import stop_on_signal


@pytest.fixture(autouse=True)
def handlers_stay():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capsys):
    stop = Stop()
    with stop_on_signal(stop):
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert "saving after this step" in capsys.readouterr().err


def test_an_error_puts_the_handlers_back():
    with pytest.raises(ZeroDivisionError), stop_on_signal(Stop()):
        raise ZeroDivisionError


def test_one_stop_does_not_reach_the_next_run():
    first = Stop()
    with stop_on_signal(first):
        os.kill(os.getpid(), signal.SIGINT)
    assert first.requested
    assert not Stop().requested


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def trial() -> None:
        before = signal.getsignal(signal.SIGINT)
        with stop_on_signal(Stop()):
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=trial)
    thread.start()
    thread.join(10)
    assert seen == [True]
