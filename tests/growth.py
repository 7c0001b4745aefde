"""How time grows with the size of the input: a ratio within one run, which no slow or busy machine changes much."""

import time
from collections.abc import Callable
from functools import partial

FACTOR = 8
AT_MOST = 30.0  # linear work takes 8 times as long, quadratic 64 times


def least_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three calls."""
    return min(_seconds(work) for _ in range(3))


def takes_linear_time(work: Callable[[int], object], size: int) -> bool:
    """Whether `work(size)` takes less than 30 times as long as `work(size // 8)`."""
    small, large = (least_seconds(partial(work, n)) for n in (size // FACTOR, size))
    return large < AT_MOST * small


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
