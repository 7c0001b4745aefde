"""Join a process group so that signals still work, and report what the process waits for.

Joining waits inside C++ code until all ranks are there, and Python's signal handlers do not run meanwhile. With
leftover launcher variables in the environment, a process would wait for ranks that nobody started, and ignore Ctrl-C.
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dcr_ds.errors import EXIT_STOPPED

REPORT_SECONDS = 20.0


@contextmanager
def interruptible_join() -> Iterator[None]:
    """While entered, a stop signal ends this process immediately, and a long wait is reported on stderr."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)  # the C handler of every signal writes its number, whatever Python does
    watcher = threading.Thread(target=_watch, args=(reader,), name="joining", daemon=True)
    watcher.start()
    # in a thread of its own: the system may look for a name for half a minute
    threading.Thread(target=_report_unknown_address, name="address", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)


def _watch(reader: int) -> None:
    timeout: float | None = REPORT_SECONDS
    while True:
        if select.select([reader], [], [], timeout)[0]:
            number = os.read(reader, 1)[0]
            if number == 0:  # joined
                return
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                print(f"stopped by {signal.Signals(number).name} while waiting for the other ranks", file=sys.stderr)
                sys.stderr.flush()
                os._exit(EXIT_STOPPED)
        else:
            print(_what_is_waited_for(), file=sys.stderr, flush=True)
            timeout = None


def _report_unknown_address() -> None:
    host = os.environ.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # UnicodeError: an invalid host name
        text = f"MASTER_ADDR={host} in the environment has no address on this host, so the other ranks cannot be found"
        print(f"WARNING: {text}; correct it, unless the name appears while this process waits", file=sys.stderr)
        sys.stderr.flush()


def _what_is_waited_for() -> str:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, world_size, host, port = (os.environ.get(name, "") for name in names)
    return (
        f"rank {rank} has waited {REPORT_SECONDS:g} seconds for {int(world_size) - 1} other processes to join at "
        f"{host}:{port}, since RANK={rank} and WORLD_SIZE={world_size} are set. If no launcher started them, stop with "
        f"Ctrl-C and unset {' '.join(names)} LOCAL_RANK"
    )
