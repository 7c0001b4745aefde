"""One step of AdamW on the CPU, fused and not: seconds, and memory for copies of its states.

    python benchmarks/optimizer_step.py --parameters 60000000

Offloaded optimizer states (ZeRO-Offload) and runs without a GPU are updated there. Each kind has a process of its own,
and a first step that makes the states. Seconds are those of the fastest step after it.
"""

import argparse
import resource
import time
from multiprocessing import get_context

import torch
from record import cpu_name, provenance

STEPS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=60_000_000)
    size = parser.parse_args().parameters
    kinds = {"fused": True, "not fused": False}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process each, for its peak of memory
        measured = {name: pool.apply(measure, (size, fused)) for name, fused in kinds.items()}
    origin = provenance("torch")
    print(f"{size:,} parameters, {cpu_name()}, torch {origin['torch']}, {origin['date']}, {origin['commit']}\n")
    print("| AdamW | seconds per step | memory beyond weights, gradients and states, GB |\n| :-- | --: | --: |")
    for name, (seconds, extra) in measured.items():
        print(f"| {name} | {seconds:.3f} | {max(0, extra) / 1e9:.2f} |")
    print(f"\nratio of seconds: {measured['not fused'][0] / measured['fused'][0]:.1f}")
    return 0


def measure(size: int, fused: bool) -> tuple[float, int]:
    """Seconds of the fastest step, and the bytes at the peak of a step beyond 4 float32 numbers per parameter."""
    _optimizer(1, fused).step()  # loads what a step needs
    before, optimizer = _peak_bytes(), _optimizer(size, fused)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), _peak_bytes() - before - 4 * 4 * size


def _optimizer(size: int, fused: bool) -> torch.optim.AdamW:
    weight = torch.nn.Parameter(torch.full((size,), 0.1))
    weight.grad = torch.full((size,), 0.01)
    return torch.optim.AdamW([weight], lr=1e-3, fused=fused)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())
