"""Detect loss spikes: losses far above those of the last steps, by robust statistics."""

from statistics import median
from typing import Any

NUM_RECENT = 50  # losses that a new one is compared with
NUM_NEEDED = 20  # losses before the first comparison
DEVIATIONS = 10.0
NORMAL = 1.4826  # standard deviation / median absolute deviation of a normal distribution


class SpikeDetector:
    """Keeps the recent losses in the state of the stage, so that a resumed run decides as an uninterrupted one."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def note(self, loss: float) -> float | None:
        """Return the median of the recent losses if this one is a spike, else None, and remember it.

        A spike exceeds the median by more than ten robust standard deviations, and by more than both the median and the
        first loss of the stage: losses close to zero vary a lot relative to their size.
        """
        recent = self.state.setdefault("recent_losses", [])
        if len(recent) >= NUM_NEEDED:
            usual = median(recent)
            deviation = NORMAL * median(abs(value - usual) for value in recent)
            if loss - usual > max(DEVIATIONS * deviation, abs(usual), abs(self.state["loss_first"])):
                return usual
        recent.append(loss)
        del recent[:-NUM_RECENT]
        return None
