"""Time, memory and accuracy of the contrastive losses of dcr_kernels, compared with the alternatives.

    python benchmarks/contrastive.py --n 1024,4096,8192 --d 576 --csv benchmarks/results/cpu.csv
    python benchmarks/contrastive.py --device cuda --dtype bf16 --n 1024,4096,16384,65536 --d 576,2048,4096 --gate
    python benchmarks/contrastive.py --tiny                                a smoke test

It needs `pip install -e '.[dev]'`, or in a bare copy of the tree PYTHONPATH=kernels and COMMIT=<commit>.

| provider     | what runs                                                                                    |
|--------------|----------------------------------------------------------------------------------------------|
| pml          | pytorch-metric-learning, on h in its own dtype; in bf16 its gradient has a large error       |
| pml_fp32     | the same, with h cast to float32                                                             |
| eager        | `backend="reference"`: N×N PyTorch in float32 with autograd                                  |
| compile      | torch.compile of eager, with TF32 products on a GPU                                          |
| compile_bf16 | the same, with matrix products in bf16                                                       |
| chunked      | `backend="chunked"`                                                                          |
| triton       | `backend="triton"`                                                                           |
| triton_graph | triton captured in a CUDA graph, for batches so small that launching dominates               |
| gemm3        | no loss: the three N·N·D products that a loss and its gradient need, in h's dtype. A floor   |

pml_tf32, eager_tf32, chunked_tf32, triton_tf32: float32 with TF32 products allowed (pml_tf32 casts as pml_fp32 does).

Modes: `fwd` is the value without a gradient, `full` the value and the gradient at h, `bwd` their difference per round
(some providers compute the gradient in the forward pass, so timing `backward()` alone would be meaningless). They count
as 2N²D, 6N²D and 4N²D operations.

Each pair of N and D runs in a new process. In each round all providers run in turn with the same new labels, so that
slow changes of the machine affect all of them; the first round is a warm-up. GPU time is measured with events after
flushing the cache; CPU time is that of the process. Peak memory is what a call needs beyond its inputs, after a first
call: from CUDA's allocator, or on a CPU the resident memory of a separate process.

Before timing, values and gradients are compared with float64 (`reference` up to N = 4096, `chunked` above); the
relative errors are columns of the row. chunked and triton are not timed if such an error is NaN or at least 1. Our
losses average over the anchors that have partners, those of pytorch-metric-learning over the anchors with a loss above
0; here these are all anchors. A provider whose N×N matrices would need more than --max-bytes is skipped, and its row
says so.
"""

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from contrastive_providers import (
    DTYPES,
    LOSSES,
    ON_CPU,
    ON_GPU,
    OURS,
    PROVIDERS,
    TF32,
    Setting,
    build,
    loss_of,
    needed_bytes,
)
from measuring import (
    attempt,
    clock_of,
    free_bytes,
    in_lean_process,
    in_new_process,
    more_rounds,
    peak_bytes,
    quantiles_ms,
    set_process_environment,
)
from record import (
    ROOT,
    add_round_options,
    append,
    check_round_options,
    device_name,
    number,
    one_or_more_of,
    option_parser,
    provenance,
    rounded,
    whole_numbers,
)
from torch import Tensor

MODES = {"fwd": 2, "bwd": 4, "full": 6}  # products of N·N·D
SHARED = ("loss", "dtype", "classes", "data", "scale", "threads", "device")  # the same for every N and D of a run
TITLE = ("N", "D", "mode", "provider", "ms", "q20 to q80", "pml/it", "it/gemm3", "MB", "pml/it", "TFLOP/s")
TITLE += ("grad. error", "outcome")
LINE = "{:>6}  {:>5}  {:4}  {:12}  {:>7}  {:>16}  {:>6}  {:>8}  {:>7}  {:>6}  {:>7}  {:>11}  {}"
EXACT_ROWS = 4096  # up to here the float64 N×N reference is affordable


class Run:
    """One provider on one problem, and its results."""

    def __init__(self, name: str, setting: Setting, h: Tensor):
        self.name, self.setting, self.h = name, setting, h
        self.result: dict[str, Any] = {"outcome": "ok"}

    @property
    def ok(self) -> bool:
        return self.result["outcome"] == "ok"

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        value, self.result["outcome"] = attempt(action, *arguments)
        return value

    def start(self, truth: tuple[Tensor, Tensor] | None) -> None:
        """Build the loss, call it once as a warm-up, and compare its value and gradient with the float64 ones."""
        self.loss = build(self.name, self.setting)
        labels = self.setting.labels(0)
        self.prepare()
        self("fwd", labels)
        value = self("full", labels)
        if self.name == "gemm3":
            return
        self.result["loss_value"] = value.item()
        if truth is None:
            return
        loss_error = abs(value.item() / truth[0].item() - 1)
        gradient_error = ((self.h.grad - truth[1]).norm() / truth[1].norm()).item()
        self.result |= {"loss_error": loss_error, "gradient_error": gradient_error}
        if self.name in OURS and not max(loss_error, gradient_error) < 1:
            raise ArithmeticError(f"relative error of the loss {loss_error:.1e}, of the gradient {gradient_error:.1e}")

    def prepare(self) -> None:
        self.h.grad = None
        tf32 = self.name in TF32 and self.h.is_cuda
        torch.set_float32_matmul_precision("high" if tf32 else "highest")

    def __call__(self, mode: str, labels: Tensor) -> Tensor:
        if mode == "fwd":
            with torch.no_grad():
                return self.loss(self.h, labels)
        value = self.loss(self.h, labels)
        value.backward()
        return value.detach()

    def peaks(self) -> dict[str, int]:
        """Peak bytes beyond the inputs, by mode."""
        result = {}
        for mode in ("fwd", "full"):
            action = partial(self, mode, self.setting.labels(0))
            self.prepare()
            action()
            self.prepare()
            result[mode] = peak_bytes(action, self.setting.device)
        return result | {"bwd": result["full"]}


def measure(setting: Setting, options: argparse.Namespace) -> tuple[str, dict[str, dict[str, Any]]]:
    """The device, and for each provider its outcome, its errors, its times and, on a GPU, its peak memory."""
    torch.set_num_threads(setting.threads)
    max_bytes = options.max_bytes or 0.6 * free_bytes(setting.device)
    h = setting.rows()
    truth, outcome = attempt(float64_truth, setting, h)
    if truth is None:
        print(f"N={setting.n} D={setting.d}: errors not measured, as float64 {outcome}", file=sys.stderr)
    runs = [Run(name, setting, h) for name in options.providers]
    for run in runs:
        needed = needed_bytes(run.name, setting)
        if needed > max_bytes:
            run.result["outcome"] = f"skipped: needs about {needed / 1e9:.3g} GB"
        else:
            run.attempt(run.start, truth)
    del truth
    time_in_turn(runs, setting, options)
    for run in runs:
        if setting.device == "cuda" and run.ok:
            run.result["peaks"] = run.attempt(run.peaks)
    return device_name(setting.device), {run.name: run.result for run in runs}


def float64_truth(setting: Setting, h: Tensor) -> tuple[Tensor, Tensor]:
    """The value of the loss and its gradient at h, in float64."""
    loss = loss_of(setting, "reference" if setting.n <= EXACT_ROWS else "chunked")
    h = h.detach().double().requires_grad_()
    value = loss(h, setting.labels(0))
    value.backward()
    return value.detach(), h.grad


def time_in_turn(runs: list[Run], setting: Setting, options: argparse.Namespace) -> None:
    """Add to the results the milliseconds of each round."""
    clock = clock_of(setting.device)
    modes = [mode for mode in ("fwd", "full") if mode in options.mode or "bwd" in options.mode]
    for run in runs:
        run.result["times"] = {mode: [] for mode in modes}
    started = time.monotonic()
    for turn in itertools.count():  # the first turn is a warm-up
        labels = setting.labels(turn)
        for run, mode in itertools.product(runs, modes):
            if not run.ok:
                continue
            run.prepare()
            elapsed = run.attempt(clock, partial(run, mode, labels))
            if turn:
                run.result["times"][mode].append(elapsed)
        if not more_rounds(turn, started, options):
            break
    for run in runs:
        if run.ok and "bwd" in options.mode:
            times = run.result["times"]
            times["bwd"] = [full - fwd for fwd, full in zip(times["fwd"], times["full"], strict=True)]


def peaks_alone(setting: Setting, name: str) -> dict[str, int]:
    torch.set_num_threads(setting.threads)
    run = Run(name, setting, setting.rows())
    run.start(None)
    return run.peaks()


def measure_apart(setting: Setting, options: argparse.Namespace) -> tuple[str, dict[str, dict[str, Any]]]:
    """`measure` in a new process and, on a CPU, the peak memory of each provider in another one."""
    measured, outcome = attempt(in_new_process, measure, setting, options)
    if measured is None:  # for example killed for its memory
        return "", {name: {"outcome": outcome} for name in options.providers}
    device, results = measured
    for name, result in results.items():
        if setting.device == "cpu" and result["outcome"] == "ok":
            result["peaks"], _ = attempt(in_lean_process, peaks_alone, setting, name)
    return device, results


def row_of(setting: Setting, name: str, mode: str, result: dict[str, Any]) -> dict[str, Any]:
    times = result.get("times", {}).get(mode) if result["outcome"] == "ok" else None
    peak = (result.get("peaks") or {}).get(mode)
    row = {"loss": setting.loss, "provider": name, "mode": mode} | asdict(setting)
    row |= {"clock": "device" if setting.device == "cuda" else "cpu"} | quantiles_ms(times or [])
    row["peak_mb"] = None if peak is None else peak / 1e6
    row["tflops"] = MODES[mode] * setting.n**2 * setting.d / row["q50_ms"] / 1e9 if row["q50_ms"] else None
    row |= {key: result.get(key) for key in ("loss_value", "loss_error", "gradient_error", "outcome")}
    return rounded(row)


def show(rows: list[dict[str, Any]]) -> None:
    """Print all rows, with ratios to pytorch-metric-learning and gemm3 on the same problem in the same mode."""
    print(LINE.format(*TITLE))
    by_key = {(row["n"], row["d"], row["mode"], row["provider"]): row for row in rows}
    for (n, d, mode, provider), row in by_key.items():
        pml, pml_fp32, floor = (by_key.get((n, d, mode, other), {}) for other in ("pml", "pml_fp32", "gemm3"))
        pml = pml_fp32 or pml
        spread = row["q50_ms"] and f"{number(row['q20_ms'])} to {number(row['q80_ms'])}"
        cells = [n, d, mode, provider, number(row["q50_ms"]), spread or ""]
        cells += [ratio(pml.get("q50_ms"), row["q50_ms"]), ratio(row["q50_ms"], floor.get("q50_ms"))]
        cells += [number(row["peak_mb"]), ratio(pml.get("peak_mb"), row["peak_mb"])]
        print(LINE.format(*cells, number(row["tflops"]), number(row["gradient_error"]), row["outcome"][:60]))


def ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else ""


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    add_round_options(parser, repeats=30, seconds=30)
    parser.add_argument("--loss", choices=LOSSES, default="circle")
    parser.add_argument("--providers", type=one_or_more_of(PROVIDERS), help="default: those for the device")
    parser.add_argument("--mode", type=one_or_more_of(tuple(MODES)), default="fwd,bwd,full")
    parser.add_argument("--n", type=whole_numbers, default="1024,4096", help="rows (default: %(default)s)")
    parser.add_argument("--d", type=whole_numbers, default="576", help="widths (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--classes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--data", choices=("isotropic", "rogue"), default="isotropic")
    parser.add_argument("--scale", type=float, default=32.0, help="γ of Circle loss (default: %(default)s)")
    parser.add_argument("--max-bytes", type=float, help="per provider (default: 60 %% of the free memory)")
    parser.add_argument("--gate", action="store_true", help="run tests/kernels first; time nothing if they fail")
    options = parser.parse_args()
    check_round_options(parser, options)
    if options.tiny:
        options.n, options.d, options.repeats = [64], [32], 3
        options.providers = options.providers or ["pml", "eager", "chunked", "gemm3"]
    if options.classes < 2 or min(options.n) < 2 * options.classes:
        parser.error(f"--classes {options.classes}: at least 2, and every N at least twice as many")
    options.providers = options.providers or list(ON_GPU if options.device == "cuda" else ON_CPU)
    return options


def main() -> None:
    options = parse()
    if options.gate and subprocess.run([sys.executable, "-m", "pytest", "tests/kernels", "-q"], cwd=ROOT).returncode:
        sys.exit("--gate: the tests of the kernels fail; nothing was timed")
    set_process_environment(options.device, options.threads)
    head = provenance("torch", "triton", "pytorch-metric-learning")
    rows = []
    for d in options.d:
        for n in options.n:
            setting = Setting(**{name: getattr(options, name) for name in SHARED}, n=n, d=d)
            device, results = measure_apart(setting, options)
            new = [row_of(setting, name, mode, results[name]) for name in options.providers for mode in options.mode]
            rows += [head | row | {"device": device} for row in new]
            for row in rows[-len(new) :] if options.csv else ():
                append(options.csv, row)
            print(f"N={n} D={d} done", file=sys.stderr, flush=True)
    show(rows)


if __name__ == "__main__":
    main()
