"""Run a server until standard input closes, then end it and all of its descendants. A program of its own (Linux).

    python guard.py COMMAND…

Standard input is a pipe from the evaluation, which the system closes however the evaluation ends: also when it is
killed. The exit code is the server's, or 128 + N if signal N ended it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
GRACE_SECONDS = 10.0  # to end after SIGTERM
KILL_SECONDS = 10.0
LIBC = ctypes.CDLL(None)


def main(command: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # descendants whose parent ends become children of this process
    try:
        # in a session of its own, so that Ctrl-C in a terminal reaches the evaluation alone
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_guard)
    except OSError as error:
        print(f"{command[0]}: cannot be started ({error.strerror})", flush=True)
        return 127
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        code = server.wait()
    finally:
        _end_descendants()
    return code if code >= 0 else 128 - code


def _die_with_guard() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise SystemExit(128 + number)


def _stop_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_descendants() -> None:
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        asked: set[int] = set()
        deadline = time.monotonic() + seconds
        while (alive := _descendants()) and time.monotonic() < deadline:
            for pid in alive - asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            asked |= alive
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.05)


def _descendants() -> set[int]:
    """The living processes below this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found.update(below)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
