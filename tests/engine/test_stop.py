"""A stop signal is a flag until the step is done; a second one ends the process as if nobody had listened."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from tiny import one_thread_environment

from dcr_ds.engine.ranks import Ranks
from dcr_ds.engine.stop import SIGNALS, StopFlag

ONE = Ranks(0, 1, 0, torch.device("cpu"))
WAITING = """
import os, signal, sys, time
import torch
from dcr_ds.engine.ranks import Ranks
from dcr_ds.engine.stop import StopFlag
with StopFlag(Ranks(0, 1, 0, torch.device("cpu"))) as stop:
    print("listening", flush=True)
    while not stop.agreed():
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Handlers of the test's own, so that a signal that gets through fails the test and not the session."""
    heard = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in SIGNALS}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_no_more(number, handlers):
    with StopFlag(ONE) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.received and stop.agreed()
    assert handlers == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_is_for_whom_it_was_before(number, handlers):
    with StopFlag(ONE):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert handlers == [number]


def test_handlers_are_put_back(handlers):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopFlag(ONE):
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), StopFlag(ONE):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, env=one_thread_environment()
    )
    try:
        for line in ("listening\n", "stopping\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
