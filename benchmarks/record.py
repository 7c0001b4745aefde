"""What the benchmarks share: rows with their origin, clocks and peak memory, new processes, failures, options."""

import argparse
import csv
import gc
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def provenance(*packages: str) -> dict[str, str]:
    """Date, commit, and the versions of the packages that matter; empty where one is not installed."""
    return {"date": date.today().isoformat(), "commit": commit()} | {name: installed(name) for name in packages}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The short commit, with +dirty where anything but the results differs from it.

    In a copy of the tree with another history, or none, what the variable COMMIT says.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    if told := os.environ.get("COMMIT"):
        return told
    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row, with a header where the file is new; a file of other columns is refused before it is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as stream:
        stream.seek(0)
        header = next(csv.reader(stream), None)
        if header not in (None, list(row)):
            raise ValueError(f"{path} has other columns; name another file")
        writer = csv.DictWriter(stream, list(row))
        if header is None:
            writer.writeheader()
        writer.writerow({name: round(value, 9) if isinstance(value, float) else value for name, value in row.items()})


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its floats to four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


class DeviceClock:
    """Milliseconds of a call on the GPU, with the L2 cache flushed before, as triton.testing.do_bench does."""

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
    """Milliseconds of CPU time of this process, all its threads together."""
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def peak_bytes(action: Callable[[], Any], device: str) -> int:
    """The most bytes in use during a call, beyond those before it; on a CPU resident ones, see `in_lean_process`."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError):  # where the peak may not be reset, an earlier one counts
        Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("/proc/self/status", "VmRSS")
    action()
    return 1024 * (_kilobytes("/proc/self/status", "VmHWM") - before)


def free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else 1024 * _kilobytes("/proc/meminfo", "MemAvailable")


def _kilobytes(path: str, name: str) -> int:
    return int(next(line.split()[1] for line in Path(path).read_text().splitlines() if line.startswith(name)))


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """The result and ok, or None and what happened; then nothing it allocated is kept."""
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
    """Call a function of a benchmark's file where nothing of an earlier measurement is alive."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def in_new_processes(calls: Sequence[tuple[Callable[..., Any], ...]]) -> list[Any]:
    """The same of several calls (function, arguments …), one after the other; their imports are done together."""
    with ExitStack() as stack:
        new = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
        pools = [stack.enter_context(new()) for _ in calls]
        for pool in pools:
            pool.submit(os.getpid)  # starts its process
        return [pool.submit(*call).result() for pool, call in zip(pools, calls, strict=True)]


def in_lean_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same for `peak_bytes` on a CPU: glibc gives back at once what dies, so what is resident is what is alive."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        return in_new_process(function, *arguments)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def whole_numbers(text: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers above 0, separated by commas")
    return [int(word) for word in text.split(",")]


def one_or_more_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        if unknown := [word for word in text.split(",") if word not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(choices)}")
        return text.split(",")

    return names
