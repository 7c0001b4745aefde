"""A stop signal sets a flag until the step is done; a second Ctrl-C ends the process as without a handler."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import one_thread_environment

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.watch.stop import SIGNALS, StopFlag, raise_on_stop_signal
from dcr_ds.errors import Stopped, UserError

ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))
WAITING = """
import os, signal, sys, time
import torch
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.watch import stop
stop.AGAIN_SECONDS = 0.0
with stop.StopFlag(Ranks(0, 1, 0, torch.device("cpu"))) as stop:
    print("listening", flush=True)
    while not stop.agreed():
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Replace the handlers, so that a signal that is not caught fails the test and does not end pytest."""
    received = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in SIGNALS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_the_flag(number, handlers):
    with StopFlag(ONE_RANK) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
    assert handlers == []


def test_the_second_ctrl_c_goes_to_the_previous_handler(handlers, monkeypatch):
    monkeypatch.setattr("dcr_ds.engine.watch.stop.AGAIN_SECONDS", 0.0)
    with StopFlag(ONE_RANK):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert handlers == [signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_repeated_signals_of_a_launcher_do_not_end_the_process(number, handlers):
    """torchrun forwards the terminal's SIGINT, and the deepspeed launcher sends SIGTERM twice."""
    with StopFlag(ONE_RANK) as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.agreed()
    assert handlers == []


def test_handlers_are_restored(handlers):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopFlag(ONE_RANK):
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), StopFlag(ONE_RANK):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_ctrl_c_ends_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, env=one_thread_environment()
    )
    try:
        for line in ("listening\n", "stopping\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("left", "needed", "stops"), [(100, 0, False), (100, 90, False), (100, 101, True), (-1, 0, True)]
)
def test_a_deadline_stops_early_enough_to_save(monkeypatch, left, needed, stops):
    monkeypatch.setenv("DCR_DS_DEADLINE", str(time.time() + left))
    assert StopFlag(ONE_RANK).agreed(needed) is stops


@pytest.mark.parametrize("text", ["", None])
def test_no_deadline_never_stops(monkeypatch, text):
    monkeypatch.delenv("DCR_DS_DEADLINE", raising=False)
    if text is not None:
        monkeypatch.setenv("DCR_DS_DEADLINE", text)
    assert not StopFlag(ONE_RANK).agreed(1e12)


@pytest.mark.parametrize("text", ["12:30", "nan", "inf"])
def test_a_deadline_that_is_not_a_number_is_an_error(monkeypatch, text):
    monkeypatch.setenv("DCR_DS_DEADLINE", text)
    with pytest.raises(UserError, match=f"DCR_DS_DEADLINE={text}: must be unix seconds"):
        StopFlag(ONE_RANK)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_the_steps_a_signal_stops_at_once(number, handlers):
    with pytest.raises(Stopped, match=f"stopped by {number.name}"), raise_on_stop_signal():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert handlers == []


def test_a_signal_within_a_library_is_not_taken_for_an_error_of_it():
    """A run that was stopped while it read a tokenizer, or rendered a chat template, ended with exit code 2."""
    with pytest.raises(Stopped), raise_on_stop_signal():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception as error:
            raise UserError(f"no tokenizer that transformers can load ({error})") from None


def test_within_the_steps_the_first_signal_only_sets_the_flag(handlers, monkeypatch):
    monkeypatch.setattr("dcr_ds.engine.watch.stop.AGAIN_SECONDS", 0.0)
    with raise_on_stop_signal(), StopFlag(ONE_RANK) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
