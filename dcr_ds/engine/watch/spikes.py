"""Loss spikes: a loss far above those of the last steps, by robust figures."""

from statistics import median
from typing import Any

NUM_RECENT = 50  # losses compared with
NUM_NEEDED = 20  # before a loss is judged at all
DEVIATIONS = 10.0
NORMAL = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation


class SpikeDetector:
    """Keeps the recent losses of a stage in its state, so that a resumed run judges as an undisturbed one does."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def note(self, loss: float) -> float | None:
        """The usual loss, where this one is a spike; else None, and this one is remembered.

        A spike lies above the median of the last steps by more than ten robust standard deviations, and by more than
        both that median and the stage's first loss: losses that have all but vanished may dance about.
        """
        recent = self.state.setdefault("recent_losses", [])
        if len(recent) >= NUM_NEEDED:
            usual = median(recent)
            deviation = NORMAL * median(abs(each - usual) for each in recent)
            if loss - usual > max(DEVIATIONS * deviation, abs(usual), abs(self.state["loss_first"])):
                return usual
        recent.append(loss)
        del recent[:-NUM_RECENT]
        return None
