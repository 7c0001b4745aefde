"""How far this process is, for the watchdog. There is one run a process."""

import time
from dataclasses import dataclass


@dataclass
class Progress:
    place: str = "the start"
    since: float = 0.0  # time.monotonic() when it last went on


progress = Progress()


def heartbeat(place: str) -> None:
    """Note that this rank goes on, and where it is, in words."""
    progress.place, progress.since = place, time.monotonic()
