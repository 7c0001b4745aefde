"""The lock of a run folder: one run writes to it at a time.

It is flock(2) on `.lock`, which the kernel releases however its process ends. Some file systems do not support it
(Lustre without the mount option flock) or lock per host only (localflock). So the holder also owns `.lock.owner`, which
names its host, process and start, and which it touches every few seconds; where flock is missing, that file alone is
the lock.

A run that waits for the owner of another host watches whether the file changes, for `LOCK_SECONDS` on its own monotonic
clock. Times of two clocks are never compared, so a clock that jumps does not release a lock that is held.
"""

import errno
import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.files import read_json
from dcr_ds.recipe.layout import RunFolder

LOCK_SECONDS = 60.0  # the ranks of a run that was killed end within this time
HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # between two runs that take over the same lock, the later one has it
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Process(NamedTuple):
    """A process on any host. Equal `boot` and `pid_space` mean that its pid can be looked up from here."""

    host: str
    boot: str
    pid_space: str
    pid: int
    ticks: str  # when it started, so that a later process with the same pid is another one


class RunLock:
    """The lock of one run folder, for one process.

    Args:
        folder: an existing run folder.
    """

    def __init__(self, folder: Path):
        self.folder, run = folder, RunFolder(folder)
        self._lock, self._owner = run.lock, run.lock_owner
        self._token = secrets.token_hex(8)
        self._descriptor: int | None = None
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock of the run folder", daemon=True)

    def acquire(self) -> None:
        """Wait for the lock, for at most `LOCK_SECONDS`.

        Raises:
            UserError: another run has it; host, process and file are named.
        """
        try:
            self._claim_owner(has_flock=self._flock())
        except BaseException:
            self._close()
            raise
        self._heart.start()

    def release(self) -> None:
        """Give the lock back; nothing if it is not held."""
        self._released.set()
        if self._heart.ident is not None:
            self._heart.join()
        if self._is_own():
            self._owner.unlink(missing_ok=True)
        self._close()

    def _flock(self) -> bool:
        """Wait for flock; return False if the file system does not support it."""
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._held_by(read_json(self._owner)) from None
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                return False
            time.sleep(POLL_SECONDS)

    def _claim_owner(self, has_flock: bool) -> None:
        """Create `.lock.owner`, or take it over from an owner that is gone."""
        start = polled = time.monotonic()
        first = self._state()
        has_changed = is_announced = False
        while not self._create():
            state = self._state()
            now = time.monotonic()
            if now - polled > 5 * POLL_SECONDS:  # the file system did not answer: nobody could touch the file
                start = now
            polled = now
            has_changed |= state != first
            owner = read_json(self._owner)
            is_gone = _is_gone(owner, has_flock)
            if is_gone or (now - start > LOCK_SECONDS and not has_changed):
                if self._take_over(settle=not (is_gone and has_flock)):
                    return
            elif now - start > LOCK_SECONDS:
                raise self._held_by(owner)
            elif not is_announced:
                print(f"{self.folder}: waiting for {_describe(owner)}, up to {LOCK_SECONDS:g} s", file=sys.stderr)
                is_announced = True
            time.sleep(POLL_SECONDS)

    def _create(self) -> bool:
        """Create the file; return False if it exists."""
        try:
            with self._owner.open("x", encoding="utf-8") as stream:
                stream.write(self._record())
        except FileExistsError:
            return False
        return True

    def _take_over(self, settle: bool) -> bool:
        """Replace the file; return whether it is still this run's after another run could have replaced it, too."""
        partial = self._owner.with_name(f"{self._owner.name}.{self._token}")
        partial.write_text(self._record(), encoding="utf-8")
        partial.replace(self._owner)
        if settle:
            time.sleep(SETTLE_SECONDS)
        return self._is_own()

    def _record(self) -> str:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps(this_process()._asdict() | {"since": since, "token": self._token})

    def _state(self) -> tuple[int, int] | None:
        """What a sign of life changes: inode and time of the file."""
        try:
            status = self._owner.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _is_own(self) -> bool:
        owner: Any = read_json(self._owner)
        return isinstance(owner, dict) and owner.get("token") == self._token

    def _beat(self) -> None:
        """Touch the file until the lock is released; end this process if another run has taken the lock over."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the disk or the network may be back at the next beat
                owner: Any = read_json(self._owner)
                if isinstance(owner, dict) and owner.get("token") != self._token:
                    print(
                        f"error: {self.folder}: {_describe(owner)} has taken over this run's folder, since this run "
                        f"gave no sign of life for {LOCK_SECONDS:g} seconds",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)
                os.utime(self._owner)

    def _held_by(self, owner: Any) -> UserError:
        return UserError(
            f"{self.folder}: another run is writing to this folder: {_describe(owner)} ({self._owner}); wait for it, "
            "stop it, or use another --name or --out"
        )

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def this_process() -> Process:
    """Describe this process."""
    return Process(platform.node(), *_space(), os.getpid(), _ticks(os.getpid()))


def _space() -> tuple[str, str]:
    """What the kernel and the container of this process are identified by; empty where /proc does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _ticks(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_gone(owner: Any, has_flock: bool) -> bool:
    """Return whether the owner is known to have ended: it ran on this host, and flock or its pid says so."""
    if not isinstance(owner, dict) or (owner.get("boot"), owner.get("pid_space")) != _space() or not owner.get("boot"):
        return False
    return has_flock or not isinstance(pid := owner.get("pid"), int) or _ticks(pid) != owner.get("ticks")


def _describe(owner: Any) -> str:
    if not isinstance(owner, dict):
        return "a process that did not leave its name"
    return f"process {owner.get('pid')} on host {owner.get('host')}, since {owner.get('since')}"
