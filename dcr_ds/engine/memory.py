"""The memory of a stage: its peak, and freeing what it held before the next one."""

import gc
import re
import resource
from contextlib import suppress
from pathlib import Path

import torch

from dcr_ds.engine.deepspeed_import import deepspeed

_PROCESS = Path("/proc/self")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory since `reset_peak_memory`: allocated on this process's GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):  # no Linux
        if peak := re.search(r"VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text()):
            return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak of a stage at the memory in use; without effect where a container forbids it (CPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets VmHWM to the resident size


def release(engine: deepspeed.DeepSpeedEngine) -> None:
    """Free weights, gradients, master weights and moments of an engine that is not used again.

    Gradient hooks of ZeRO and the nodes that call them refer to each other in a way that Python's garbage collector
    does not see, and `engine.destroy()` removes only some of them: the tensors would stay alive during the next stage.
    """
    optimizer, module = engine.optimizer, engine.module
    engine.destroy()
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.grad = None
        tensor.data = tensor.new_empty(0)
        vars(tensor).clear()  # the partition of ZeRO-3, links to master weights
    inner = getattr(optimizer, "optimizer", optimizer)  # torch's, inside of DeepSpeed's
    inner.state.clear()
    inner.param_groups.clear()
    vars(optimizer).clear()
    vars(engine).clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
