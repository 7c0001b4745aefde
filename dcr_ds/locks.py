"""Locks between processes of one or more hosts: one process at a time writes to a run folder or file, or fills a cache.

A lock is flock(2) on a file, which the kernel releases however its process ends. Some file systems do not support it
(Lustre without the mount option flock) or lock per host only (localflock). So the holder also owns `<file>.owner`,
which names its host, process and start, and which it touches every few seconds; where flock is missing, that file alone
is the lock.

A process that waits for the owner of another host watches whether the file changes, for `SILENT_SECONDS` on its own
monotonic clock. Times of two clocks are never compared, so a clock that jumps does not release a lock that is held.
"""

import errno
import fcntl
import json
import math
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.files import read_json

SILENT_SECONDS = 60.0  # after so long without a sign of life an owner is gone
WRITER_SECONDS = SILENT_SECONDS  # after which a command gives up, as a writer that is gone is found out by then
HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # of two processes that take over a lock within this time, the later one has it
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Process(NamedTuple):
    """A process on any host. Equal `boot` and `pid_space` mean that its pid can be looked up from here."""

    host: str
    boot: str
    pid_space: str
    pid: int
    ticks: str  # when it started, so that a later process with the same pid is another one


class LockHeld(Exception):
    """Another process has the lock; the text names it."""


class Lock:
    """A lock, for one process.

    Args:
        path: its file, in an existing folder.
        is_kept: whether the file stays when the lock is given back. If not, a process that waits for it notices, and
            makes a new one.
    """

    def __init__(self, path: Path, is_kept: bool = True):
        self._path, self._owner, self._is_kept = path, path.with_name(f"{path.name}.owner"), is_kept
        self._token = secrets.token_hex(8)
        self._descriptor: int | None = None
        self._is_announced = False
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)

    def acquire(self, timeout: float = math.inf) -> None:
        """Wait for the lock.

        Args:
            timeout: in seconds.

        Raises:
            LockHeld: another process has it for longer; host, process and file are named.
        """
        try:
            self._claim_owner(timeout, has_flock=self._flock(timeout))
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
            self._remove()
        self._close()

    def _flock(self, timeout: float) -> bool:
        """Wait for flock; return False if the file system does not support it."""
        deadline = time.monotonic() + timeout
        while True:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(self._descriptor):
                    return True
                self._close()
                continue
            except (BlockingIOError, PermissionError):  # the latter on some network file systems
                owner = read_json(self._owner)
                if time.monotonic() > deadline:
                    raise self._held_by(owner) from None
                self._announce(owner)
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                return False
            time.sleep(POLL_SECONDS)

    def _is_current(self, descriptor: int) -> bool:
        """Whether an open file is still the lock: its last holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except OSError:  # removed here, or stale on a network file system
            return False

    def _claim_owner(self, timeout: float, has_flock: bool) -> None:
        """Create the owner's file, or take it over from an owner that is gone."""
        start = polled = changed = time.monotonic()
        state = self._state()
        while not self._create():
            before, state = state, self._state()
            now = time.monotonic()
            if state != before or now - polled > 5 * POLL_SECONDS:  # or the file system stood still for all
                changed = now
            polled = now
            owner = read_json(self._owner)
            is_gone = _is_gone(owner, has_flock)
            if is_gone or now - changed > SILENT_SECONDS:
                if self._take_over(settle=not (is_gone and has_flock)):
                    return
            elif now - start > timeout:
                raise self._held_by(owner)
            else:
                self._announce(owner)
            time.sleep(POLL_SECONDS)

    def _create(self) -> bool:
        """Create the file; return False if it exists."""
        try:
            with self._owner.open("x", encoding="utf-8") as stream:
                stream.write(self._record())
        except FileExistsError:
            return False
        except OSError:  # such as a full disk
            self._remove()
            raise
        return True

    def _take_over(self, settle: bool) -> bool:
        """Replace the file; return whether it is still own after another process could have done the same."""
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
        """Touch the file until the lock is released; end this process if another one has taken the lock over."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the disk or the network may be back at the next beat
                owner: Any = read_json(self._owner)
                if isinstance(owner, dict) and owner.get("token") != self._token:
                    print(
                        f"error: {self._path}: {_describe(owner)} has taken over this lock, since this process gave no "
                        f"sign of life for {SILENT_SECONDS:g} seconds",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)
                os.utime(self._owner)

    def _announce(self, owner: Any) -> None:
        if not self._is_announced:
            print(f"waiting for {_describe(owner)} ({self._owner})", file=sys.stderr, flush=True)
        self._is_announced = True

    def _held_by(self, owner: Any) -> LockHeld:
        return LockHeld(f"{_describe(owner)} ({self._owner})")

    def _remove(self) -> None:
        """Remove the files, while flock is held."""
        self._owner.unlink(missing_ok=True)
        if not self._is_kept:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock while entered; wait for it as long as another process has it and lives."""
    lock = Lock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_of(output: Path) -> Path:
    """The lock of a file or folder that a command writes, next to it; its folder is made."""
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_name(f".{output.name}.lock")


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Hold the lock of an output file or folder while entered; its files are removed.

    Raises:
        UserError: another process keeps it.
    """
    lock = Lock(lock_of(output), is_kept=False)
    try:
        lock.acquire(WRITER_SECONDS)
    except LockHeld as held:
        raise UserError(
            f"{output}: another command is writing to it: {held}; wait for it, stop it, or use another --out"
        ) from None
    except OSError as error:
        error.filename = str(output)  # not the lock's
        raise
    try:
        yield
    finally:
        lock.release()


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
