"""The watchdog: a run that no longer goes on is ended on all ranks, and what is known of it is told.

A thread of each rank notes in a store where its rank is and that it lives. The thread of rank 0 looks at all of them:

- a rank that gave no sign for `GONE_SECONDS` is gone: killed, frozen, or its node is down;
- where no rank has gone on for `hang_minutes`, the run hangs: in a collective that one rank never joined, say.
  One rank that goes on keeps the others waiting: rank 0 judges and exports alone.

A rank that fails says so itself. A rank whose launcher was killed ends, or it would go on beside the run that takes its
place. Every one of these ends the process by `os._exit`: no clean-up may wait for a rank that never comes. Checkpoints
are whole or absent, so the same command goes on from the last one.
"""

import faulthandler
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from torch.distributed import TCPStore

from dcr_ds.engine.ranks import Ranks, from_main, is_lost_rank
from dcr_ds.errors import Diverged, Stopped, UserError

POLL_SECONDS = 2.0
GONE_SECONDS = 60.0
LOST_SECONDS = 3 * POLL_SECONDS  # once a collective has failed, since then some rank is known to be gone
STORE_TIMEOUT = timedelta(seconds=30)
OTHERS_SPEAK_SECONDS = 5.0  # what fails on one rank mostly fails on all, and rank 0 then tells it
LAUNCHERS = ("deepspeed", "torchrun", "deepspeed.launcher.launch", "torch.distributed.run", "torch.distributed.launch")


@dataclass
class _Progress:
    """How far this process is; there is one run a process."""

    place: str = "the start"
    since: float = 0.0


_progress = _Progress()


def heartbeat(place: str) -> None:
    """Note that this rank goes on, and where it is, in words."""
    _progress.place, _progress.since = place, time.monotonic()


@dataclass(frozen=True)
class Sign:
    """What a rank last said of itself, and when it was heard."""

    count: int
    node: str
    place: str
    silent_seconds: float
    heard: float


class Watchdog:
    """While entered, watches this run. All ranks."""

    def __init__(self, hang_minutes: float):
        self.hang_seconds = 60 * hang_minutes
        self.gone_seconds = GONE_SECONDS
        self._launchers = _launchers()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._ranks: Ranks | None = None
        self._store: TCPStore | None = None
        self._watched = range(0)
        self._signs: dict[int, Sign] = {}
        self._count = 0

    def __enter__(self) -> "Watchdog":
        heartbeat("the start")
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if is_lost_rank(error):
            self.gone_seconds = LOST_SECONDS
            self._over.wait(5 * POLL_SECONDS)  # rank 0 sees who it is, and ends this process; or nobody is missing
        self._over.set()
        self._thread.join()
        is_fault = isinstance(error, Exception) and not isinstance(error, UserError | Stopped | Diverged)
        if self._store is not None and is_fault:
            with suppress(RuntimeError):
                self._store.set("verdict", json.dumps([f"{self._me()}: {type(error).__name__}: {error}"[:500], False]))

    def join(self, ranks: Ranks) -> None:
        """Watch all ranks together, once they have joined the process group. All ranks."""
        if ranks.world_size == 1:
            return
        host, own = os.environ["MASTER_ADDR"], None
        if ranks.is_main:
            own = TCPStore(host, 0, is_master=True, timeout=STORE_TIMEOUT, wait_for_workers=False)
        port = from_main(own.port if own else None, ranks)
        store = own or TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
        self._watched = range(ranks.world_size) if ranks.is_main else range(1)
        self._signs = {rank: Sign(0, "unknown", "the start", 0.0, time.monotonic()) for rank in self._watched}
        self._ranks, self._store = ranks, store

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if dead := [pid for pid in self._launchers if not Path(f"/proc/{pid}").exists()]:
                _end(f"{self._me()}: the launcher (process {dead[0]}) was killed")
            elif self._store is None:
                silent = time.monotonic() - _progress.since
                if silent > self.hang_seconds:
                    _end(f"{self._me()}: nothing has gone on for {silent / 60:.3g} minutes", is_hang=True)
            else:
                self._watch_together()

    def _watch_together(self) -> None:
        try:
            text, is_hang = self._verdict()
        except RuntimeError:  # the store is gone, and rank 0 with it, or it is frozen
            text, is_hang = self._who_is_gone([0]), False
        if text and not self._over.wait(0 if is_hang else OTHERS_SPEAK_SECONDS):
            _end(text if self._ranks.is_main or self._who_is_gone([0]) else "", is_hang)

    def _verdict(self) -> tuple[str, bool]:
        """Why the run must end, or "", and whether it hangs."""
        self._count += 1
        silent = time.monotonic() - _progress.since
        sign = [self._count, platform.node(), _progress.place, silent]
        self._store.set(f"rank/{self._ranks.rank}", json.dumps(sign))
        if self._store.check(["verdict"]):
            text, is_hang = json.loads(self._store.get("verdict"))
            return text, is_hang
        for rank in self._watched:
            self._listen(rank)
        text, is_hang = self._who_is_gone(self._watched), False
        if self._ranks.is_main:
            if not text and min(sign.silent_seconds for sign in self._signs.values()) > self.hang_seconds:
                text, is_hang = f"no rank has gone on for {self.hang_seconds / 60:g} minutes: {self._places()}", True
            if text:
                self._store.set("verdict", json.dumps([text, is_hang]))
        return text, is_hang

    def _listen(self, rank: int) -> None:
        """Take note of a rank's sign, where it is a new one."""
        if self._store.check([f"rank/{rank}"]):
            count, node, place, silent = json.loads(self._store.get(f"rank/{rank}"))
            if count > self._signs[rank].count:
                self._signs[rank] = Sign(count, node, place, silent, time.monotonic())

    def _who_is_gone(self, ranks: Iterable[int]) -> str:
        now = time.monotonic()
        return "; ".join(
            f"rank {rank} on node {self._signs[rank].node} is gone: no sign of it for {self.gone_seconds:g} seconds, "
            f"last at {self._signs[rank].place}"
            for rank in ranks
            if now - self._signs[rank].heard > self.gone_seconds
        )

    def _places(self) -> str:
        """Where the ranks stand; who stands apart is the one to look at."""
        by_place: dict[str, list[str]] = {}
        for rank, sign in sorted(self._signs.items()):
            by_place.setdefault(sign.place, []).append(f"{rank} on node {sign.node}")
        return "; ".join(f"{place}: rank {', '.join(ranks)}" for place, ranks in by_place.items())

    def _me(self) -> str:
        return f"rank {os.environ.get('RANK', '0')} on node {platform.node()}, at {_progress.place}"


def _end(text: str, is_hang: bool = False) -> None:
    """End this process at once; a text is told, and of a hang where every thread is."""
    if text:
        print(f"error: {text}. The same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    if is_hang:
        faulthandler.dump_traceback(sys.stderr)
    os._exit(1)


def _launchers() -> list[int]:
    """The processes above this one that are launchers of deepspeed or torch, where /proc tells."""
    found, pid = [], os.getppid()
    with suppress(OSError):
        while pid > 1:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            is_python = Path(words[0]).name.startswith("python")
            if is_python and any(Path(word).name in LAUNCHERS for word in words[1:6]):
                found.append(pid)
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
