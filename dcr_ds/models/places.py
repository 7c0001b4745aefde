"""How many requests are sent to a server at the same time, lowered when it cannot hold so many."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Places:
    """Places for requests; a thread waits for one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self) -> Iterator[int]:
        """Hold a place while entered; yields the number of places at that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken < self.number)
            self._taken += 1
            number = self.number
        try:
            yield number
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify_all()

    def lower(self, failed: int) -> bool:
        """Halve the number at which a request failed, once for all requests that fail together.

        Returns: whether there are fewer places now than in this call before.
        """
        with self._changed:
            is_new = failed // 2 < self.number
            self.number = min(self.number, max(1, failed // 2))
            return is_new
