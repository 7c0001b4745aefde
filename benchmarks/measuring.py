"""What the benchmarks measure with: clocks, quantiles, peak memory, failures, and new processes."""

import argparse
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

MIN_ROUNDS = 3


class DeviceClock:
    """GPU milliseconds of a call, after flushing the L2 cache, as triton.testing.do_bench does."""

    def __init__(self):
        self.cache = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, action: Callable[[], Any]) -> float:
        self.cache.zero_()
        self.start.record()
        action()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


def cpu_clock(action: Callable[[], Any]) -> float:
    """Milliseconds of CPU time of a call, summed over the threads of this process."""
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def clock_of(device: str) -> Callable[[Callable[[], Any]], float]:
    """The clock for short calls on a device; it returns milliseconds."""
    return DeviceClock() if device == "cuda" else cpu_clock


def seconds_now(device: str) -> float:
    """Seconds for timing whole steps: wall time on a GPU, once it is idle; CPU time of this process otherwise."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def more_rounds(count: int, started: float, options: argparse.Namespace) -> bool:
    """Whether to time another round: up to --repeats, and after MIN_ROUNDS no longer than --seconds."""
    return count < options.repeats and (count < MIN_ROUNDS or time.monotonic() - started < options.seconds)


def quantiles_ms(times: Sequence[float]) -> dict[str, Any]:
    """Number of rounds, and the 20th, 50th and 80th percentile of their milliseconds (None without rounds)."""
    low, median, high = numpy.percentile(times, (20, 50, 80)).tolist() if times else [None] * 3
    return {"rounds": len(times), "q20_ms": low, "q50_ms": median, "q80_ms": high}


def peak_bytes(action: Callable[[], Any], device: str) -> int:
    """Peak bytes in use during a call, less those in use before it.

    On a CPU this is resident memory, so that the call should run in `in_lean_process`.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError):  # where the kernel does not let us reset the peak, an earlier peak is reported
        Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("/proc/self/status", "VmRSS")
    action()
    # the kernel counts pages per thread and adds them up late, so a peak can read a few pages below what was there
    return 1024 * max(0, _kilobytes("/proc/self/status", "VmHWM") - before)


def free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else 1024 * _kilobytes("/proc/meminfo", "MemAvailable")


def _kilobytes(path: str, name: str) -> int:
    return int(next(line.split()[1] for line in Path(path).read_text().splitlines() if line.startswith(name)))


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Call a function: (its result, "ok"), or (None, the kind of failure) after freeing what the call allocated."""
    try:
        return function(*arguments), "ok"
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text
        outcome = "oom" if no_memory else f"failed: {type(error).__name__}: {text[:200]}"
    gc.collect()
    with suppress(RuntimeError):  # after a crashed kernel every call fails
        torch.cuda.empty_cache()
    return None, outcome


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, where no memory of an earlier measurement is in use."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def in_new_processes(calls: Sequence[tuple[Callable[..., Any], ...]]) -> list[Any]:
    """`in_new_process` for several calls (function, arguments …), one after the other; the processes start together."""
    with ExitStack() as stack:
        new = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
        pools = [stack.enter_context(new()) for _ in calls]
        for pool in pools:
            pool.submit(os.getpid)  # starts the process, which then imports the benchmark
        return [pool.submit(*call).result() for pool, call in zip(pools, calls, strict=True)]


def in_lean_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`in_new_process` for `peak_bytes` on a CPU: glibc returns freed memory at once, so resident memory is in use."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        return in_new_process(function, *arguments)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def set_process_environment(device: str, threads: int) -> None:
    """Set the environment of the processes that measure; torch reads it there when it is imported."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": device,
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
