"""Profile training steps: a trace and a table of where the time goes. Rank 0; off by default."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.files import write_atomically
from dcr_ds.recipe.layout import StageFolder

PARTS = {"forward": "forward", "backward": "backward", "step": "optimizer"}  # the engine's methods
WARM_UP = 2  # steps before the trace: the first builds buffers, the second starts the profiler
COLLECTIVES = ("gloo:", "nccl")  # how their events begin


class Profile:
    """While entered, traces `steps` steps of a stage after two others into `folder.profile`; 0 steps: does nothing.

    trace.json is for chrome://tracing or Perfetto; table.txt says where the wall-clock time of those steps went.
    Backward passes contain ZeRO's collectives, which are also listed separately. On a GPU each part waits until the GPU
    is done, so that its time is correct. This slows profiled steps down.
    """

    def __init__(self, steps: int, engine: Any, folder: StageFolder, ranks: Ranks):
        self.steps = steps if ranks.is_main else 0
        self.engine, self.folder, self.ranks = engine, folder.profile, ranks
        self.seconds: dict[str, float] = defaultdict(float)
        self.done = 0

    def __enter__(self) -> "Profile":
        if self.steps:
            on_gpu = self.ranks.device.type == "cuda"
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            plan = schedule(wait=WARM_UP - 1, warmup=1, active=self.steps, repeat=1)
            self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write).__enter__()
            for method, part in PARTS.items():
                setattr(self.engine, method, self._timed(getattr(self.engine, method), part, on_gpu))
        return self

    def __exit__(self, *error: Any) -> None:
        if self.steps:
            for method in PARTS:
                delattr(self.engine, method)
            self.profiler.__exit__(*error)

    def step(self) -> None:
        """Record the end of a step."""
        if not self.steps:
            return
        self.done += 1
        if self.done == WARM_UP:
            self.seconds.clear()
            self.started = time.perf_counter()
        if self.done == WARM_UP + self.steps:
            self.total = time.perf_counter() - self.started
        self.profiler.step()

    def _timed(self, method: Callable, part: str, on_gpu: bool) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            with record_function(part):
                result = method(*args, **kwargs)
                if on_gpu:
                    torch.cuda.synchronize(self.ranks.device)
            self.seconds[part] += time.perf_counter() - started
            return result

        return timed

    def _write(self, profiler: profile) -> None:
        if self.done < WARM_UP + self.steps:
            return  # the stage ended too early
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        events = [event for event in profiler.key_averages() if event.key.startswith(COLLECTIVES)]
        collectives = sum(max(event.cpu_time_total, event.device_time_total) for event in events) / 1e6
        write_atomically(self.folder / "table.txt", self._table(collectives))
        print_on_main(self.ranks, f"profile of {self.steps} steps: {self.folder / 'table.txt'} and trace.json")

    def _table(self, collectives: float) -> str:
        rest = self.total - sum(self.seconds.values())
        rows = [*((part, self.seconds[part]) for part in PARTS.values()), ("data, loss and the rest", rest)]
        lines = [f"{'part':24}{'s / step':>10}{'share':>8}"]
        for part, seconds in [*rows, ("total", self.total), ("collectives, inside", collectives)]:
            lines.append(f"{part:24}{seconds / self.steps:10.4f}{seconds / self.total:8.1%}")
        return "\n".join(lines) + "\n"
