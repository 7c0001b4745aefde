"""Supervised tokens per second of stage 2, compared with TRL's SFTTrainer on the same data.

    python benchmarks/align_step.py --shape smollm2-135m --csv benchmarks/results/align_step.csv
    python benchmarks/align_step.py --device cuda --shape largest --csv benchmarks/results/align_step.csv
    python benchmarks/align_step.py --tiny                                    a smoke test

Models have random weights in the shape of a published model. Conversations have random tokens and log-normal lengths:
prompts with median 60 and σ 0.8, answers with median 180 and σ 0.7, together cut to --max-length. All arms use the same
rows in the same order, the same DeepSpeed configuration, precision, AdamW, constant learning rate, and conversations
per step.

    ours-padded, ours-packed    `align.step.train_step` and the engine's step, everything else `auto`
    ours-liger, ours-plain      packed, with liger-kernel's loss at the head; without fused kernels in the blocks
    trl-default                 SFTTrainer's defaults: padded to the longest, activations recomputed, 8 rows per pass
    trl-padded                  nothing recomputed, Liger's kernels on a GPU, as many rows per pass as ours
    trl-packed                  the same with packing=True and sdpa: conversations separated by a block-diagonal mask
    trl-varlen                  the same with our variable-length attention instead of flash-attn

Each arm runs in its own process with a time limit; an arm that fails or runs out of memory gets a row that says so. The
processes start together and are measured one after the other. The first steps are a warm-up. Losses are compared over
the first steps of the arms with equal batches: all except the packed arms of TRL, which packs the whole data set and
samples its rows at random. On a CPU, times are CPU seconds.

MFU counts the model's FLOP at real tokens (each conversation attends to itself, the head runs at supervised tokens), as
three forward passes; no recomputation, no padding.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from align_arms import OURS, TRL, TRL_PACKED, run_ours, run_trl
from measuring import in_new_process, set_process_environment
from record import append, number, option_parser, provenance
from shapes import SHAPES, config_of, largest_that_fits, save_random

ARMS = {
    "cpu": ["ours-padded", "ours-packed", "trl-default"],
    "cuda": ["ours-packed", "trl-default", "trl-varlen", "trl-packed", "trl-padded", "ours-padded", "ours-liger"],
}
MEASURED = (
    "supervised_tokens_per_second",
    "tokens_per_second",
    "step_seconds_median",
    "step_seconds_q25",
    "step_seconds_q75",
    "supervised_tokens",
    "tokens",
    "passes",
    "peak_bytes",
    "mfu",
)
TITLE = ("arm", "supervised/s", "tokens/s", "step s (quartiles)", "passes", "peak GB", "MFU", "first losses")
LINE = "{:<13} {:>12} {:>10} {:>24} {:>7} {:>8} {:>6}  {}"


class Arm:
    """An arm in its own process, which imports what it needs and then waits for `measure`."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.result, self.output = (Path(options.model, name + suffix) for suffix in (".result", ".output"))
        command = [sys.executable, __file__, *sys.argv[1:], "--run-arm", name, "--model", options.model]
        command += ["--shape", options.shape, "--result", self.result]
        with self.output.open("w") as output:
            streams = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
            self.process = subprocess.Popen(command, **streams, text=True, start_new_session=True)

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Run the arm: its measurements, and as `status` ok, oom, out of time, or the error."""
        try:
            self.process.communicate("go\n", options.budget)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return {"status": f"out of time: {options.budget} s"}
        log, code = self.output.read_text(), self.process.returncode
        if options.verbose or code:
            print(log[-3000:] if code else log, file=sys.stderr, flush=True)
        if code == 0:
            return {"status": "ok"} | json.loads(self.result.read_text())
        if "OutOfMemoryError" in log or "out of memory" in log:
            return {"status": "oom"}
        lines = [line.removeprefix("[rank0]: ") for line in log.splitlines() if line.strip()]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        message = (raised or lines or [f"code {code}"])[-1]
        return {"status": f"failed: {message[:200]}"}


def gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def in_process(options: argparse.Namespace) -> None:
    """What the process of an `Arm` does."""
    import dcr_ds.align.loop  # noqa: F401

    if options.run_arm in TRL:
        import trl  # noqa: F401
    if not sys.stdin.readline():  # the parent process has ended
        return
    run = run_trl if options.run_arm in TRL else run_ours
    Path(options.result).write_text(json.dumps(run(options, options.run_arm)))


def compare(losses: list[float], reference: list[float]) -> float | None:
    """The largest relative difference between two loss curves over their common steps."""
    pairs = zip(losses, reference, strict=False)
    return max((abs(loss / expected - 1) for loss, expected in pairs), default=None)


def show(arm: str, row: dict[str, Any]) -> None:
    if row["status"] != "ok":
        print(f"{arm:<13} {row['status']}", flush=True)
        return
    seconds = "{:.3f} ({:.3f} to {:.3f})".format(*(row[f"step_seconds_{which}"] for which in ("median", "q25", "q75")))
    peak = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else ""
    share = f"{row['mfu']:.1%}" if row["mfu"] else ""
    losses = " ".join(f"{loss:.4f}" for loss in row["losses"])
    rates = f"{row['supervised_tokens_per_second']:.0f}", f"{row['tokens_per_second']:.0f}"
    print(LINE.format(arm, *rates, seconds, f"{row['passes']:.1f}", peak, share, losses), flush=True)


def summarise(rows: dict[str, dict[str, Any]], on_gpu: bool) -> None:
    """Print the ratios of rates that have a target on a GPU."""
    rates = {arm: row["supervised_tokens_per_second"] for arm, row in rows.items() if row["status"] == "ok"}
    ours = max((arm for arm in rates if arm in OURS), key=rates.get, default=None)
    best_trl = max((arm for arm in rates if arm in TRL), key=rates.get, default=None)
    for arm, name, target in ((best_trl, f"{best_trl}, the best of TRL", 1.0), ("trl-default", "trl-default", 1.3)):
        if ours and arm in rates:
            print(f"{ours} / {name}: {rates[ours] / rates[arm]:.2f}{f' (target {target})' if on_gpu else ''}")


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--shape", choices=(*SHAPES, "largest"), default="smollm2-135m", help="largest: of Qwen2.5")
    parser.add_argument("--arms", help=f"of {', '.join((*OURS, *TRL))} (default: by device)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=2, help="ZeRO stage (default: 2)")
    parser.add_argument("--batch", type=int, help="conversations per step (default: 8; on a GPU 256, above 1B 64)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens per conversation (default: 1024)")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones (default: 3)")
    parser.add_argument("--steps", type=int, help="timed steps (default: 8 on a GPU, else 3)")
    parser.add_argument("--budget", type=int, default=200, help="seconds per arm, building included (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--verbose", action="store_true", help="print the output of each arm")
    for name in ("--run-arm", "--model", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not options.run_arm and not Path("/dev/nvidia0").exists():
        parser.error("--device cuda: there is no GPU; leave it out")
    if options.tiny:
        options.shape, options.max_length = "tiny", min(options.max_length, 128)
    small = options.shape in ("smollm2-135m", "qwen2.5-0.5b")
    options.batch = options.batch or (8 if options.device == "cpu" or options.tiny else 256 if small else 64)
    options.steps = options.steps or (8 if options.device == "cuda" else 3)
    options.arms = options.arms.split(",") if options.arms else ARMS[options.device]
    if unknown := set(options.arms) - {*OURS, *TRL}:
        parser.error(f"--arms: {', '.join(sorted(unknown))}: not among {', '.join((*OURS, *TRL))}")
    if options.warmup < 1:
        parser.error("--warmup: at least 1")
    return options


def main() -> None:
    options = parse()
    set_process_environment(options.device, options.threads)
    if options.run_arm:
        return in_process(options)
    if options.shape == "largest":
        options.shape = largest_that_fits("qwen2.5", in_new_process(gpu_bytes))
    head = provenance("torch", "deepspeed", "transformers", "trl", "liger-kernel", "flash-attn")
    head |= {name: getattr(options, name) for name in ("shape", "zero", "batch", "max_length", "threads", "steps")}
    rows: dict[str, dict[str, Any]] = {}
    reference: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        options.model = folder
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        arms = {name: Arm(options, name) for name in options.arms}
        in_new_process(save_random, config_of(options.shape), Path(folder), dtype, options.device)
        print(f"{options.shape}, {options.batch} conversations per step, ZeRO {options.zero}")
        print(LINE.format(*TITLE), flush=True)
        for arm, process in arms.items():
            row = rows[arm] = {"losses": []} | process.measure(options)
            same_batches = arm not in TRL_PACKED and row["losses"]
            reference = reference or (row["losses"] if same_batches else [])
            difference = compare(row["losses"], reference) if same_batches else None
            show(arm, row)
            if options.csv:
                line = head | {"arm": arm, "status": row["status"], "device": row.get("device")}
                line |= {name: row.get(name) for name in MEASURED} | {"loss_difference": difference}
                append(options.csv, line | {"losses": " ".join(f"{loss:.5f}" for loss in row["losses"])})
            if difference:
                print(f"{'':<13} the losses differ from the first arm's by at most {number(difference)}", flush=True)
    summarise(rows, options.device == "cuda")


if __name__ == "__main__":
    main()
