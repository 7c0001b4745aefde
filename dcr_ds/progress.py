"""The progress of this process, which the watchdog checks. There is one run per process."""

import time
from dataclasses import dataclass


@dataclass
class Progress:
    place: str = "the start"
    since: float = 0.0  # time.monotonic() of the last progress


progress = Progress()


def heartbeat(place: str) -> None:
    """Record that this rank makes progress, and where it is, in words."""
    progress.place, progress.since = place, time.monotonic()
