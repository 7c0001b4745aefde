"""A process that loads or saves makes progress; one that waits does not."""

import mmap
import time

import pytest

from dcr_ds import progress
from dcr_ds.progress import MOVED_BYTES, heartbeat_while_moving


@pytest.fixture(autouse=True)
def polled_often(monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.005)


def write(folder):
    (folder / "file").write_bytes(b"x" * (2 * MOVED_BYTES))


def allocate(folder):
    memory = mmap.mmap(-1, 2 * MOVED_BYTES)  # new pages: a bytearray may get memory that this process freed before
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    kept.append(memory)


kept: list[mmap.mmap] = []


@pytest.mark.parametrize("work", [write, allocate])
def test_bytes_that_are_moved_are_progress(tmp_path, work):
    with heartbeat_while_moving("loading"):
        time.sleep(0.05)  # some bytes, and not 16 MB of them
        started = progress.progress.since
        time.sleep(0.05)
        assert (progress.progress.since, progress.progress.place) == (started, "loading")
        work(tmp_path)
        deadline = time.monotonic() + 10
        while progress.progress.since == started and time.monotonic() < deadline:
            time.sleep(0.005)
        assert progress.progress.since > started
    kept.clear()
    ended = progress.progress.since
    write(tmp_path)
    time.sleep(0.05)
    assert progress.progress.since == ended
