"""Stop signals: a flag, agreed on by all ranks at a step boundary."""

import signal
from types import FrameType

import torch

from dcr_ds.engine.ranks import Ranks, sum_over_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """While entered, SIGTERM, SIGINT and SIGUSR1 ask for a stop instead of ending the process.

    The same signal a second time has its usual effect: Ctrl-C twice ends the process at once.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.received = False

    def __enter__(self) -> "StopFlag":
        self.previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(number, self.previous[number])

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop. All ranks, at a step boundary."""
        flag = torch.tensor(float(self.received), device=self.ranks.device)
        return bool(sum_over_ranks(flag, self.ranks).item())
