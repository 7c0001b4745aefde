"""Stop requests: a signal or a deadline sets a flag, on which all ranks agree at a step boundary."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch

from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.errors import Interrupted, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN_SECONDS = 2.0
DEADLINE = "DCR_DS_DEADLINE"  # unix seconds by which the job ends; slurm/dcr.sh sets it from the job's time limit


class StopFlag:
    """While entered, SIGTERM, SIGINT, SIGUSR1 and the deadline request a stop instead of ending the process.

    A second Ctrl-C after `AGAIN_SECONDS` has its usual effect. Earlier ones are ignored: launchers forward what the
    terminal has already sent to the ranks, and repeat SIGTERM while they wait.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.received_at: float | None = None
        unix_deadline = _deadline()
        # from here on by a clock that cannot be set, so that a jump of the system's clock changes nothing
        self._deadline = None if unix_deadline is None else time.monotonic() + unix_deadline - time.time()

    def __enter__(self) -> "StopFlag":
        self.previous: dict[int, Any] = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received_at is None:
            self.received_at = now
        elif number == signal.SIGINT and now - self.received_at >= AGAIN_SECONDS:
            signal.signal(number, self.previous[number])
            os.kill(os.getpid(), number)

    def agreed(self, seconds_needed: float = 0.0) -> bool:
        """Return whether any rank was asked to stop, or rank 0 finds too little time left. All ranks.

        Args:
            seconds_needed: seconds that the run needs before the deadline to take another step and save; rank 0's
                counts, which has measured the saves.
        """
        late = self.ranks.is_main and self._deadline is not None and time.monotonic() + seconds_needed >= self._deadline
        flag = torch.tensor(float(self.received_at is not None or late), device=self.ranks.device)
        return bool(sum_over_ranks(flag, self.ranks).item())


@contextmanager
def raise_on_stop_signal() -> Iterator[None]:
    """While entered, stop signals raise Interrupted, except inside a StopFlag.

    For loading, export and evaluation, which need not save anything: they resume from what is on disk. The watchdog
    ends the ranks that did not receive the signal.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handled(stop):
        yield


@contextmanager
def ignore_stop_signals() -> Iterator[None]:
    """While entered, stop signals have no effect: for what ends within seconds and says why."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _deadline() -> float | None:
    text = os.environ.get(DEADLINE)
    if not text:
        return None
    with suppress(ValueError):
        if math.isfinite(seconds := float(text)):  # every comparison with nan is false
            return seconds
    raise UserError(f"{DEADLINE}={text}: must be unix seconds, as printed by `date +%s`")
