"""Time, memory and accuracy of the contrastive losses of dcr_kernels, beside what one would use without them.

    python benchmarks/contrastive.py --n 1024,4096,8192 --d 576 --csv benchmarks/results/cpu.csv
    python benchmarks/contrastive.py --device cuda --dtype bf16 --n 1024,4096,16384,65536 --d 576,2048,4096 --gate
    python benchmarks/contrastive.py --tiny                                a smoke test

It needs `pip install -e '.[dev]'`, or in a bare copy of the tree PYTHONPATH=kernels and COMMIT=<commit>.

| provider     | what runs                                                                                    |
|--------------|----------------------------------------------------------------------------------------------|
| pml          | pytorch-metric-learning, on h in its own dtype; in bf16 its gradient is far off              |
| pml_fp32     | the same on h cast to float32                                                                |
| eager        | `backend="reference"`: N×N PyTorch in float32 with autograd                                  |
| compile      | torch.compile of eager, with TF32 products on a GPU                                          |
| compile_bf16 | the same with its matrix products in bf16                                                    |
| chunked      | `backend="chunked"`                                                                          |
| triton       | `backend="triton"`                                                                           |
| triton_graph | the same call captured in a CUDA graph, for batches so small that launching is all the cost   |
| gemm3        | no loss: the three N·N·D products a loss with its gradient needs, in the dtype of h. A floor |

pml_tf32, eager_tf32, chunked_tf32, triton_tf32: on float32 with TF32 products allowed (pml_tf32 casts as pml_fp32).

`fwd` is the value without a gradient, `full` the value and the gradient at h, `bwd` the difference of the two in
each round: some providers take the gradient in their forward pass, so that timing `backward()` alone would compare
nothing. The operations counted are 2N²D, 6N²D and 4N²D.

Each N and D gets a new process, where the providers run in turn with the same fresh labels, so that a drift of the
machine meets them all; a round of warm-up is left out. A GPU's time is taken with events on a flushed cache, a CPU's
is CPU time of the process. Peak memory is what a call needs beyond the inputs, after a call that warms up: of CUDA's
allocator, or resident memory of a process of its own on a CPU.

Before the timing, value and gradient are held to float64 (`reference` up to N = 4096, `chunked` above). The relative
errors are in the row; chunked and triton are not timed when one of them reaches 1 or is NaN, the others always are.
Our losses divide by the anchors that have partners and pytorch-metric-learning by those of loss above 0: here every
anchor is both. A provider whose N×N matrices exceed --max-bytes by arithmetic is a row that says so.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dcr_kernels
import numpy
import torch
from record import (
    ROOT,
    DeviceClock,
    append,
    attempt,
    cpu_clock,
    cpu_name,
    free_bytes,
    in_lean_process,
    in_new_process,
    number,
    one_or_more_of,
    peak_bytes,
    provenance,
    rounded,
    whole_numbers,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode

OURS = ("chunked", "triton", "triton_graph", "chunked_tf32", "triton_tf32")
TF32 = ("pml_tf32", "eager_tf32", "compile", "compile_bf16", "chunked_tf32", "triton_tf32")
PROVIDERS = ("pml", "pml_fp32", "eager", "gemm3", *dict.fromkeys((*TF32, *OURS)))
PAIR_BYTES = {"pml": 57, "eager": 38, "compile": 14}  # measured for Circle loss; the others are near
ON_CPU = ("pml", "eager", "compile", "chunked", "gemm3")
ON_GPU = ("pml", "pml_fp32", "pml_tf32", "eager", "compile", "compile_bf16", "chunked", "triton", "gemm3")
LOSSES = ("circle", "supcon", "ntxent", "triplet")
MODES = {"fwd": 2, "bwd": 4, "full": 6}  # products of N·N·D
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MARGIN, TEMPERATURE, TRIPLET_MARGIN = 0.25, 0.1, 0.2  # the defaults of dcr_kernels
SHARED = ("loss", "dtype", "classes", "data", "scale", "threads", "device")  # by all settings of a run
MIN_ROUNDS = 3
TITLE = ("N", "D", "mode", "provider", "ms", "q20 to q80", "pml/it", "it/gemm3", "MB", "pml/it", "TFLOP/s")
TITLE += ("grad. error", "outcome")
LINE = "{:>6}  {:>5}  {:4}  {:12}  {:>7}  {:>16}  {:>6}  {:>8}  {:>7}  {:>6}  {:>7}  {:>11}  {}"
EXACT_ROWS = 4096  # up to here the float64 N×N reference is affordable
PRODUCT_ROWS = 1024


@dataclass(frozen=True)
class Setting:
    """The problem the providers are given."""

    n: int
    d: int
    loss: str
    dtype: str
    classes: int
    data: str
    scale: float
    threads: int
    device: str

    def rows(self) -> Tensor:
        """h [N, D], random; `rogue`: four near-constant dimensions hold 4/5 of the squared length, as in LLMs."""
        generator = torch.Generator(self.device).manual_seed(0)
        h = torch.randn(self.n, self.d, device=self.device, generator=generator)
        if self.data == "rogue":
            h[:, :4] = (1 + 0.1 * h[:, :4]) * math.sqrt(self.d)
        return h.to(DTYPES[self.dtype]).requires_grad_()

    def labels(self, seed: int) -> Tensor:
        """[N], in random order, all classes of one size."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randperm(self.n, device=self.device, generator=generator) % self.classes


class Run:
    """One provider on one problem, and what came of it."""

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
        """Build it and hold its value and gradient to the truth. It warms up."""
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
        """Bytes beyond the inputs at the worst moment of the value alone and of the whole step."""
        result = {}
        for mode in ("fwd", "full"):
            action = partial(self, mode, self.setting.labels(0))
            self.prepare()
            action()
            self.prepare()
            result[mode] = peak_bytes(action, self.setting.device)
        return result | {"bwd": result["full"]}


def build(name: str, setting: Setting) -> Callable[..., Tensor]:
    """The provider as a function of h and labels."""
    base = name.removesuffix("_tf32")
    if base == "triton_graph":
        return torch.cuda.make_graphed_callables(ours(setting, "triton"), (setting.rows(), setting.labels(0)))
    if base == "gemm3":
        return lambda h, labels: ThreeProducts.apply(h)
    if base in ("pml", "pml_fp32"):
        loss = metric_learning(setting)
        return loss if name == "pml" else lambda h, labels: loss(h.float(), labels)
    if base in OURS:
        return ours(setting, base)
    loss = ours(setting, "reference")
    if base == "eager":
        return loss
    compiled = torch.compile(loss, dynamic=False)
    return compiled if base == "compile" else with_bf16_products(compiled)


def ours(setting: Setting, backend: str) -> Callable[..., Tensor]:
    options = {"margin": MARGIN, "scale": setting.scale} if setting.loss == "circle" else {}
    return partial(getattr(dcr_kernels, f"{setting.loss}_loss"), backend=backend, **options)


def metric_learning(setting: Setting) -> Callable[..., Tensor]:
    """The same loss of pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses, miners

    if setting.loss == "circle":
        return losses.CircleLoss(m=MARGIN, gamma=setting.scale)
    if setting.loss == "supcon":
        return losses.SupConLoss(temperature=TEMPERATURE)
    if setting.loss == "triplet":
        cosine = distances.CosineSimilarity()
        miner = miners.BatchHardMiner(distance=cosine)
        criterion = losses.TripletMarginLoss(margin=TRIPLET_MARGIN, distance=cosine)
        return lambda h, labels: criterion(h, labels, miner(h, labels))
    return losses.NTXentLoss(temperature=TEMPERATURE)


class ThreeProducts(torch.autograd.Function):
    """The similarities and, in the backward pass, the similarities again and the gradient: a few rows at a time."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        for rows in h.split(PRODUCT_ROWS):
            rows @ h.T
        return h.new_ones(())

    @staticmethod
    def backward(ctx, _) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.cat([(rows @ h.T) @ h for rows in h.split(PRODUCT_ROWS)])


class Bf16Products(TorchFunctionMode):
    """Rounds the factors and the results of matrix products to bf16, as one would write it for speed."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            return function(*(factor.bfloat16() for factor in args)).float()
        return function(*args, **(kwargs or {}))


def with_bf16_products(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*arguments: Tensor) -> Tensor:
        with Bf16Products():
            return loss(*arguments)

    return run


def needed_bytes(name: str, setting: Setting) -> float:
    """What a provider that keeps N×N matrices will need, by arithmetic."""
    base = name.partition("_")[0]
    pairs = setting.n**2
    if base == "pml" and setting.loss == "ntxent":  # a matrix of positive by negative pairs
        return 16 * (pairs / setting.classes) * pairs * (1 - 1 / setting.classes)
    return PAIR_BYTES.get(base, 0) * pairs


def measure(setting: Setting, options: argparse.Namespace) -> tuple[str, dict[str, dict[str, Any]]]:
    """The device, and for each provider its outcome, its errors, its times and, on a GPU, its peak memory."""
    torch.set_num_threads(setting.threads)
    on_gpu = setting.device == "cuda"
    max_bytes = options.max_bytes or 0.6 * free_bytes(setting.device)
    h = setting.rows()
    truth, outcome = attempt(float64_truth, setting, h)
    if truth is None:
        print(f"N={setting.n} D={setting.d}: no errors, float64 {outcome}", file=sys.stderr)
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
        if on_gpu and run.ok:
            run.result["peaks"] = run.attempt(run.peaks)
    return torch.cuda.get_device_name() if on_gpu else cpu_name(), {run.name: run.result for run in runs}


def float64_truth(setting: Setting, h: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    loss = ours(setting, "reference" if setting.n <= EXACT_ROWS else "chunked")
    h = h.detach().double().requires_grad_()
    value = loss(h, setting.labels(0))
    value.backward()
    return value.detach(), h.grad


def time_in_turn(runs: list[Run], setting: Setting, options: argparse.Namespace) -> None:
    """Add the milliseconds of each round to the results, until --repeats, or after --seconds and MIN_ROUNDS."""
    clock = DeviceClock() if setting.device == "cuda" else cpu_clock
    modes = [mode for mode in ("fwd", "full") if mode in options.mode or "bwd" in options.mode]
    for run in runs:
        run.result["times"] = {mode: [] for mode in modes}
    started = time.monotonic()
    for turn in range(options.repeats + 1):  # the first warms up
        labels = setting.labels(turn)
        for run in runs:
            for mode in modes:
                if not run.ok:
                    continue
                run.prepare()
                elapsed = run.attempt(clock, partial(run, mode, labels))
                if turn:
                    run.result["times"][mode].append(elapsed)
        if turn >= MIN_ROUNDS and time.monotonic() - started > options.seconds:
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
    if measured is None:  # the process was killed for its memory, say
        return "", {name: {"outcome": outcome} for name in options.providers}
    device, results = measured
    for name, result in results.items():
        if setting.device == "cpu" and result["outcome"] == "ok":
            result["peaks"], _ = attempt(in_lean_process, peaks_alone, setting, name)
    return device, results


def row_of(setting: Setting, name: str, mode: str, result: dict[str, Any]) -> dict[str, Any]:
    times = result.get("times", {}).get(mode) if result["outcome"] == "ok" else None
    low, median, high = numpy.percentile(times, (20, 50, 80)).tolist() if times else [None] * 3
    peak = (result.get("peaks") or {}).get(mode)
    row = {"loss": setting.loss, "provider": name, "mode": mode} | asdict(setting)
    row |= {"clock": "device" if setting.device == "cuda" else "cpu", "rounds": len(times or ())}
    row |= {"q20_ms": low, "q50_ms": median, "q80_ms": high, "peak_mb": None if peak is None else peak / 1e6}
    row["tflops"] = MODES[mode] * setting.n**2 * setting.d / median / 1e9 if median else None
    row |= {key: result.get(key) for key in ("loss_value", "loss_error", "gradient_error", "outcome")}
    return rounded(row)


def show(rows: list[dict[str, Any]]) -> None:
    """All rows, compared with pytorch-metric-learning and with gemm3 on the same problem in the same mode."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default="circle")
    parser.add_argument("--providers", type=one_or_more_of(PROVIDERS), help="default: those for the device")
    parser.add_argument("--mode", type=one_or_more_of(tuple(MODES)), default="fwd,bwd,full")
    parser.add_argument("--n", type=whole_numbers, default="1024,4096", help="rows (default: %(default)s)")
    parser.add_argument("--d", type=whole_numbers, default="576", help="widths (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--classes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--data", choices=("isotropic", "rogue"), default="isotropic")
    parser.add_argument("--scale", type=float, default=32.0, help="γ of Circle loss (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="rounds at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="for the rounds of one N and D; at least 3 rounds")
    parser.add_argument("--max-bytes", type=float, help="for a provider (default: 60 %% of what is free)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--gate", action="store_true", help="run tests/kernels first; time nothing if they fail")
    parser.add_argument("--tiny", action="store_true", help="a small problem, to try the benchmark")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use; leave it out")
    if options.tiny:
        options.n, options.d, options.repeats = [64], [32], 3
        options.providers = options.providers or ["pml", "eager", "chunked", "gemm3"]
    if options.classes < 2 or min(options.n) < 2 * options.classes:
        parser.error(f"--classes {options.classes}: at least 2, and two rows of each in every N")
    if min(options.threads, options.repeats) < 1:
        parser.error("--threads and --repeats: at least 1")
    options.providers = options.providers or list(ON_GPU if options.device == "cuda" else ON_CPU)
    return options


def main() -> None:
    options = parse()
    if options.gate and subprocess.run([sys.executable, "-m", "pytest", "tests/kernels", "-q"], cwd=ROOT).returncode:
        sys.exit("--gate: the tests of the kernels fail; nothing was timed")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported where it is measured
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
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
