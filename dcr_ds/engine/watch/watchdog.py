"""The watchdog ends a run that makes no progress, on all ranks, and reports what is known about it.

On each rank a thread writes signs of life and the rank's place to a store. The thread of rank 0 watches all of them:

- A rank without a sign of life for `GONE_SECONDS` is gone: killed, frozen, or its node is down.
- If no rank has made progress for `hang_minutes`, the run hangs, for example in a collective that one rank never
  joined. Progress of one rank is enough: the others wait while rank 0 judges or exports.

A rank that fails, or is stopped by a signal outside of steps, reports it itself. A rank whose launcher was killed ends:
it would run next to the run that replaces it. In all cases the process ends by `os._exit`, as no clean-up may wait for
a rank that never comes. Checkpoints are atomic, so the same command resumes from the last one.
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
from typing import Literal

from torch.distributed import TCPStore

from dcr_ds.engine.distributed import Ranks, broadcast_from_main, gather_objects, is_peer_failure
from dcr_ds.engine.watch.stop import ignore_stop_signals
from dcr_ds.errors import EXIT_STOPPED, Interrupted, RunEnded, describe_write_error
from dcr_ds.progress import heartbeat, progress

POLL_SECONDS = 2.0
GONE_SECONDS = 60.0
LOST_SECONDS = 3 * POLL_SECONDS  # after a collective has failed, when some rank is known to be gone
STORE_TIMEOUT = timedelta(seconds=30)
REPORT_SECONDS = 5.0  # an error of one rank is often an error of all, which rank 0 reports
LEAVE_SECONDS = 3 * POLL_SECONDS  # in which the other ranks read why the run ends
LAUNCHERS = ("deepspeed", "torchrun", "deepspeed.launcher.launch", "torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a rank, and when it was received."""

    count: int
    node: str
    place: str
    silent_seconds: float
    heard: float


@dataclass(frozen=True)
class Verdict:
    """Why the run ends; the same on all ranks."""

    text: str
    kind: Literal["gone", "failed", "hang", "stopped"]


class Watchdog:
    """While entered, watches this run. All ranks."""

    def __init__(self, hang_minutes: float):
        self.hang_seconds = 60 * hang_minutes
        self.gone_seconds = GONE_SECONDS
        self._launchers = _launchers()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        self._ranks: Ranks | None = None
        self._store: TCPStore | None = None
        self._watched = range(0)
        self._signs: dict[int, Sign] = {}
        self._count = 0
        self._verdict: Verdict | None = None

    def __enter__(self) -> "Watchdog":
        heartbeat("the start")
        self._threads[0].start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ignore_stop_signals():  # launchers stop the ranks next to one that failed, whose reason is wanted
            self._end_watch(error)

    def _end_watch(self, error: BaseException | None) -> None:
        if is_peer_failure(error):
            self.gone_seconds = LOST_SECONDS
            # time to find the rank that is gone, and to end this process
            self._over.wait(LOST_SECONDS + 3 * POLL_SECONDS)
        self._over.set()
        for thread in self._threads:
            thread.join(2 * POLL_SECONDS)
        if self._store is not None and self._ranks is not None:
            with suppress(RuntimeError):
                self._leave(self._store, self._ranks, error)

    def _leave(self, store: TCPStore, ranks: Ranks, error: BaseException | None) -> None:
        """Publish what ends this rank and, as far as is known here, no other."""
        if isinstance(error, Interrupted):
            verdict = _publish(store, Verdict(f"{self._me()}: {error}", "stopped"))
            if verdict.kind != "stopped":
                self._obey(verdict)
            self._part(store, ranks)
        elif isinstance(error, Exception) and not isinstance(error, RunEnded) and not is_peer_failure(error):
            reason = describe_write_error(error, "a file") or f"{type(error).__name__}: {error}"
            _publish(store, Verdict(f"{self._me()}: {reason}"[:500], "failed"))

    def _part(self, store: TCPStore, ranks: Ranks) -> None:
        """Say that this rank ends. The store ends with rank 0, so that rank waits until the others have read why."""
        store.set(f"left/{ranks.rank}", "")
        if ranks.is_main:
            store.wait([f"left/{rank}" for rank in self._watched], timedelta(seconds=LEAVE_SECONDS))

    def join(self, ranks: Ranks) -> None:
        """Watch all ranks together, once they have joined the process group. All ranks."""
        if ranks.world_size == 1:
            return
        host, own = os.environ["MASTER_ADDR"], None
        if ranks.is_main:
            own = TCPStore(host, 0, is_master=True, timeout=STORE_TIMEOUT, wait_for_workers=False)
        port = broadcast_from_main(own.port if own else None, ranks)
        self._store = own or TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
        self._watched = range(ranks.world_size) if ranks.is_main else range(1)
        nodes = gather_objects(platform.node(), ranks)
        self._signs = {rank: Sign(0, nodes[rank], "the start", 0.0, time.monotonic()) for rank in self._watched}
        self._ranks = ranks
        exchange = threading.Thread(
            target=self._keep_exchanging, args=(self._store, ranks), name="watchdog store", daemon=True
        )
        self._threads.append(exchange)
        self._threads[-1].start()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if dead := [pid for pid in self._launchers if not _is_alive(pid)]:
                _end(f"{self._me()}: the launcher (process {dead[0]}) was killed")
            elif self._ranks is None:
                silent = time.monotonic() - progress.since
                if silent > self.hang_seconds:
                    text = f"{self._me()}: no progress for {silent / 60:.3g} minutes"
                    _end(_with_stacks(Verdict(text, "hang")).text)
            elif gone := self._describe_gone([0]):
                _end(gone)
            elif (verdict := self._verdict) and not self._over.wait(_patience(verdict)):
                self._obey(verdict)

    def _obey(self, verdict: Verdict) -> None:
        """Print the reason on rank 0, and end this process."""
        assert self._ranks is not None and self._store is not None  # a verdict comes from the store
        text = verdict.text if self._ranks.is_main else ""
        if verdict.kind in ("gone", "failed"):
            _end(text)
        with suppress(RuntimeError):
            self._part(self._store, self._ranks)
        if verdict.kind == "hang":
            _end(text)
        if text:
            print(f"{text}; the same command continues from there", file=sys.stderr, flush=True)
        os._exit(EXIT_STOPPED)

    def _keep_exchanging(self, store: TCPStore, ranks: Ranks) -> None:
        """In a separate thread: if rank 0 is frozen, a request to its store never returns."""
        with suppress(RuntimeError):  # the store's process is dead; each further request would print a trace
            while self._verdict is None and not self._over.wait(POLL_SECONDS):
                self._verdict = self._exchange(store, ranks)

    def _exchange(self, store: TCPStore, ranks: Ranks) -> Verdict | None:
        """Send a sign of life, receive those of the watched ranks, and return a verdict if there is one."""
        self._count += 1
        silent = time.monotonic() - progress.since
        sign = [self._count, platform.node(), progress.place, silent]
        store.set(f"rank/{ranks.rank}", json.dumps(sign))
        if store.check(["verdict"]):
            return _with_stacks(Verdict(*json.loads(store.get("verdict"))))
        for rank in self._watched:
            self._listen(store, rank)
        verdict = None
        if gone := self._describe_gone(self._watched):
            verdict = Verdict(gone, "gone")
        elif ranks.is_main and min(sign.silent_seconds for sign in self._signs.values()) > self.hang_seconds:
            text = f"no rank has made progress for {self.hang_seconds / 60:g} minutes: {self._places()}"
            verdict = _with_stacks(Verdict(text, "hang"))
        return _publish(store, verdict) if verdict and ranks.is_main else verdict

    def _listen(self, store: TCPStore, rank: int) -> None:
        """Read a rank's heartbeat if it is new."""
        if store.check([f"rank/{rank}"]):
            count, node, place, silent = json.loads(store.get(f"rank/{rank}"))
            if count > self._signs[rank].count:
                self._signs[rank] = Sign(count, node, place, silent, time.monotonic())

    def _describe_gone(self, ranks: Iterable[int]) -> str:
        now = time.monotonic()
        return "; ".join(
            f"rank {rank} on node {self._signs[rank].node} is gone: no sign of life for {self.gone_seconds:g} seconds, "
            f"last at {self._signs[rank].place}"
            for rank in ranks
            if now - self._signs[rank].heard > self.gone_seconds
        )

    def _places(self) -> str:
        """List the positions of the ranks; look first at a rank that differs from the others."""
        by_place: dict[str, list[str]] = {}
        for rank, sign in sorted(self._signs.items()):
            by_place.setdefault(sign.place, []).append(f"{rank} on node {sign.node}")
        return "; ".join(f"{place}: rank {', '.join(ranks)}" for place, ranks in by_place.items())

    def _me(self) -> str:
        return f"rank {os.environ.get('RANK', '0')} on node {platform.node()}, at {progress.place}"


def _publish(store: TCPStore, verdict: Verdict) -> Verdict:
    """Publish a verdict, and return the one that stands: the first."""
    return Verdict(*json.loads(store.compare_set("verdict", "", json.dumps([verdict.text, verdict.kind]))))


def _with_stacks(verdict: Verdict) -> Verdict:
    """Print the stack of every thread in a hang: now, as the first rank that ends breaks the collectives of others."""
    if verdict.kind == "hang":
        faulthandler.dump_traceback(sys.stderr)
    return verdict


def _patience(verdict: Verdict) -> float:
    return REPORT_SECONDS if verdict.kind == "failed" else 0.0


def _end(text: str) -> None:
    """Print a text, and end this process immediately."""
    if text:
        print(f"error: {text}. The same command resumes from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)


def _launchers() -> list[int]:
    """Return the ancestors of this process that are launchers of deepspeed or torch, where /proc lists them."""
    launchers, pid = [], os.getppid()
    with suppress(OSError):
        while pid > 1:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            is_python = Path(words[0]).name.startswith("python")
            if is_python and any(Path(word).name in LAUNCHERS for word in words[1:6]):
                launchers.append(pid)
            pid = int(_stat(pid)[1])
    return launchers


def _is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
