"""Time a part of a step on the device, without waiting for it."""

import time

import torch


class Stopwatch:
    """Context manager that measures the seconds between entry and exit on the device; 0 if it was never entered.

    On a GPU the time is that of its kernels, between two events. Read `seconds` after the device has been waited for
    anyway, such as by `.item()`.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list = []

    def __enter__(self) -> "Stopwatch":
        self._mark()
        return self

    def __exit__(self, *error: object) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        if not self._on_gpu:
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000
