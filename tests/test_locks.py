"""Locks with and without flock: one holder, named in messages, and replaced when it is gone."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny import one_thread_environment

from dcr_ds import locks
from dcr_ds.locks import Lock, LockHeld, this_process

HOLD = """
import fcntl, sys, time
from pathlib import Path
from dcr_ds import locks
locks.HEARTBEAT_SECONDS = 0.05
def unsupported(*_):
    raise OSError(int(sys.argv[2]), "not supported")
if int(sys.argv[2]):
    fcntl.flock = unsupported
held = locks.Lock(Path(sys.argv[1]))
held.acquire()
print("held", flush=True)
time.sleep(60)
"""
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.1)


@pytest.fixture(params=[0, *UNSUPPORTED], ids=["flock", *map(errno.errorcode.get, UNSUPPORTED)])
def flock_error(request, monkeypatch):
    """Each way in which a file system has flock, or says that it has none."""

    def unsupported(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    return request.param


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock."""
    processes = []

    def start(flock_error: int) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock"), str(flock_error)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread_environment()
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def owned_elsewhere(folder, **changes) -> dict:
    """Leave the record of a process of another host."""
    owner = this_process()._asdict() | {"boot": "another", "host": "node7", "pid": 4321, "token": "theirs"} | changes
    (folder / ".lock.owner").write_text(json.dumps(owner))
    return owner


def test_second_process_is_refused_and_the_message_names_host_process_and_file(tmp_path, hold, flock_error):
    holder = hold(flock_error)
    with pytest.raises(LockHeld) as refused:
        Lock(tmp_path / ".lock").acquire(timeout=0.5)
    for text in (f"process {holder.pid} on host {os.uname().nodename}, since 20", f"{tmp_path}/.lock.owner"):
        assert text in str(refused.value)
    assert holder.poll() is None


def test_lock_of_a_process_that_was_killed_is_taken_at_once(tmp_path, hold, flock_error, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 60.0)
    holder = hold(flock_error)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    taken = Lock(tmp_path / ".lock")
    taken.acquire()
    assert time.monotonic() - started < 5
    taken.release()
    assert not (tmp_path / ".lock.owner").exists()


def test_lock_that_was_released_is_free(tmp_path, flock_error):
    for _ in range(2):
        taken = Lock(tmp_path / ".lock")
        taken.acquire()
        assert json.loads((tmp_path / ".lock.owner").read_text())["pid"] == os.getpid()
        taken.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_writers_that_remove_their_lock_never_meet(tmp_path, monkeypatch):
    """One that waits for a file that its holder removes would have a lock that nobody else sees."""
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.001)
    inside, most = [], []

    def write() -> None:
        for _ in range(20):
            with locks.sole_writer(tmp_path / "out"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert not list(tmp_path.iterdir())


def test_lock_of_another_host_is_taken_when_its_owner_gives_no_sign_of_life(tmp_path, flock_error):
    owned_elsewhere(tmp_path)
    started = time.monotonic()
    taken = Lock(tmp_path / ".lock")
    taken.acquire()
    assert time.monotonic() - started > 0.5
    taken.release()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_living_lock_of_another_host_is_kept_though_its_clock_jumps(tmp_path, flock_error, jump):
    """Also where flock locks per host only."""
    owned_elsewhere(tmp_path)
    over = threading.Event()

    def beat():
        for number in range(10**6):
            if over.wait(0.05):
                return
            when = time.time() + (jump if number % 2 else 0)
            os.utime((tmp_path / ".lock.owner"), (when, when))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockHeld, match="process 4321 on host node7"):
            Lock(tmp_path / ".lock").acquire(timeout=0.5)
    finally:
        over.set()
        thread.join()
    assert json.loads((tmp_path / ".lock.owner").read_text())["token"] == "theirs"


def test_process_with_the_same_pid_on_this_host_is_not_the_owner(tmp_path, flock_error):
    """The owner is gone, and its pid was given to another process."""
    owned_elsewhere(tmp_path, **this_process()._asdict() | {"ticks": "1"})
    taken = Lock(tmp_path / ".lock")
    taken.acquire()
    taken.release()


def test_of_two_runs_that_take_over_one_has_the_lock(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    owned_elsewhere(tmp_path)
    outcomes = []

    def acquire():
        taken = Lock(tmp_path / ".lock")
        try:
            taken.acquire(timeout=2.0)
            outcomes.append(taken)
        except LockHeld:
            outcomes.append(None)

    threads = [threading.Thread(target=acquire) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (taken,) = filter(None, outcomes)
    assert len(outcomes) == 2
    taken.release()


def test_run_that_was_frozen_and_lost_its_lock_ends(tmp_path, hold):
    holder = hold(errno.ENOSYS)
    holder.send_signal(signal.SIGSTOP)
    owned_elsewhere(tmp_path)
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(20) == 1
    assert "process 4321 on host node7" in holder.stderr.read()


def test_damaged_record_is_replaced(tmp_path, flock_error):
    (tmp_path / ".lock.owner").write_text("{")
    taken = Lock(tmp_path / ".lock")
    taken.acquire()
    taken.release()
