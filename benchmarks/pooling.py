"""Time, memory and accuracy of mean pooling, forward and backward, compared with plain PyTorch.

    python benchmarks/pooling.py --csv benchmarks/results/pooling_cpu.csv
    python benchmarks/pooling.py --device cuda --csv benchmarks/results/pooling_h200.csv      [64, 2048, 4096] in bf16

eager multiplies the hidden states [B, T, D] by the mask, sums in float32 and divides; reference and triton are the
backends of `dcr_kernels.pool`. The lengths are random. GB/s counts the minimal traffic, which is the same for all: one
read of the hidden states and one write of their gradient, padding included. The error is the relative error of the
gradient, against float64. Each provider runs in its own process; clocks, rounds and memory are as in contrastive.py.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contrastive_providers import DTYPES
from dcr_kernels import pool
from measuring import (
    attempt,
    clock_of,
    in_lean_process,
    in_new_process,
    more_rounds,
    peak_bytes,
    quantiles_ms,
    set_process_environment,
)
from record import (
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

PROVIDERS = ("eager", "reference", "triton")
LINE = "{:10}  {:>8}  {:>18}  {:>6}  {:>7}  {:>11}  {}"
CPU_SHAPE, GPU_SHAPE, TINY_SHAPE = (16, 256, 576), (64, 2048, 4096), (3, 8, 16)


def eager(hidden: Tensor, mask: Tensor) -> Tensor:
    total = (hidden * mask[:, :, None]).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1)[:, None]


def build(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return eager if name == "eager" else lambda hidden, mask: pool(hidden, "mean", mask, backend=name)[0]


class Step:
    """Forward and backward of one provider on random hidden states."""

    def __init__(self, name: str, options: argparse.Namespace):
        torch.set_num_threads(options.threads)
        b, t, d = options.shape
        generator = torch.Generator(options.device).manual_seed(0)
        draw = partial(torch.randn, device=options.device, generator=generator)
        self.hidden = draw(b, t, d).to(DTYPES[options.dtype]).requires_grad_()
        self.upstream = draw(b, d)
        lengths = torch.randint(1, t + 1, (b, 1), device=options.device, generator=generator)
        self.mask = torch.arange(t, device=options.device) < lengths
        self.pool = build(name)

    def __call__(self) -> None:
        self.pool(self.hidden, self.mask).backward(self.upstream)

    def gradient_error(self) -> float:
        """Relative error of the gradient, summed one sequence at a time, as float64 needs much memory."""
        self()
        mean_gradient = self.upstream.double() / self.mask.sum(dim=1)[:, None]
        squares = []
        for gradient, mask, row in zip(self.hidden.grad, self.mask, mean_gradient, strict=True):
            exact = mask[:, None] * row
            squares.append(((gradient - exact).square().sum(), exact.square().sum()))
        error, norm = torch.tensor(squares).sum(dim=0)
        return (error / norm).sqrt().item()


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    step = Step(name, options)
    result = {"device": device_name(options.device), "gradient_error": step.gradient_error()}
    clock = clock_of(options.device)
    times: list[float] = []
    started = time.monotonic()
    while more_rounds(len(times), started, options):
        step.hidden.grad = None
        times.append(clock(step))
    result |= quantiles_ms(times)
    moved = 2 * step.hidden.numel() * step.hidden.element_size()
    return result | {"gbs": moved / result["q50_ms"] / 1e6}


def peak_mb(name: str, options: argparse.Namespace) -> float:
    """Peak memory beyond the inputs; it includes the gradient of the hidden states."""
    step = Step(name, options)
    step()
    step.hidden.grad = None
    return peak_bytes(step, options.device) / 1e6


COLUMNS = ("device", "rounds", "q20_ms", "q50_ms", "q80_ms", "gbs", "peak_mb", "gradient_error", "outcome")


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    result, outcome = attempt(in_new_process, measure, name, options)
    result = dict.fromkeys(COLUMNS) | (result or {}) | {"outcome": outcome}
    if outcome == "ok":
        result["peak_mb"], _ = attempt(in_lean_process, peak_mb, name, options)
    b, t, d = options.shape
    row = {"provider": name, "b": b, "t": t, "d": d, "dtype": options.dtype, "threads": options.threads}
    row |= {"clock": "device" if options.device == "cuda" else "cpu"} | result
    return rounded(row)


def whole_shape(text: str) -> tuple[int, ...]:
    if len(shape := whole_numbers(text)) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: three numbers B,T,D")
    return tuple(shape)


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    add_round_options(parser, repeats=50, seconds=20)
    parser.add_argument("--providers", type=one_or_more_of(PROVIDERS), help="default: all that the device can run")
    parser.add_argument("--shape", type=whole_shape, help=f"B,T,D (default: {CPU_SHAPE}, on a GPU {GPU_SHAPE})")
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32, on a GPU bf16")
    options = parser.parse_args()
    check_round_options(parser, options)
    on_gpu = options.device == "cuda"
    options.shape = options.shape or (TINY_SHAPE if options.tiny else GPU_SHAPE if on_gpu else CPU_SHAPE)
    options.dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    options.providers = options.providers or list(PROVIDERS if on_gpu else PROVIDERS[:2])
    return options


def main() -> None:
    options = parse()
    set_process_environment(options.device, options.threads)
    head = provenance("torch", "triton")
    print(LINE.format("provider", "ms", "q20 to q80", "GB/s", "MB", "grad. error", "outcome"))
    for name in options.providers:
        row = head | row_of(name, options)
        spread = "" if row["q50_ms"] is None else f"{row['q20_ms']:.3g} to {row['q80_ms']:.3g}"
        numbers = [number(row[column]) for column in ("gbs", "peak_mb", "gradient_error")]
        print(LINE.format(name, number(row["q50_ms"]), spread, *numbers, row["outcome"]), flush=True)
        if options.csv:
            append(options.csv, row)


if __name__ == "__main__":
    main()
