"""The progress of this process, which the watchdog checks. There is one run per process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOVED_BYTES = 1 << 24  # the watchdog itself sends less in a day
POLL_SECONDS = 2.0
PAGE_BYTES = 4096


@dataclass
class Progress:
    place: str = "the start"
    since: float = 0.0  # time.monotonic() of the last progress


progress = Progress()


def heartbeat(place: str) -> None:
    """Record that this rank makes progress, and where it is, in words."""
    progress.place, progress.since = place, time.monotonic()


@contextmanager
def heartbeat_while_moving(place: str) -> Iterator[None]:
    """While entered, record progress for every 16 MB that this process reads, writes or loads into memory.

    For calls into libraries that take minutes and report nothing: loading a model, saving a checkpoint. A process that
    waits for another one moves nothing and makes no progress.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(place, over), name="moved bytes", daemon=True)
    heartbeat(place)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(place: str, over: threading.Event) -> None:
    moved = last = moved_bytes()
    while moved is not None and last is not None and not over.wait(POLL_SECONDS):
        moved = moved_bytes()
        if moved is not None and abs(moved - last) >= MOVED_BYTES:
            heartbeat(place)
            last = moved


def moved_bytes() -> int | None:
    """Bytes read and written by this process so far, and those in its memory; None where /proc does not say."""
    try:
        counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
        return int(counted["rchar"]) + int(counted["wchar"]) + resident
    except (OSError, KeyError, ValueError):
        return None
