"""Supervised tokens a second of stage 2, against TRL's SFTTrainer on the same data.

    python benchmarks/align_step.py --shape smollm2-135m --csv benchmarks/results/align_step.csv
    python benchmarks/align_step.py --device cuda --shape largest --csv benchmarks/results/align_step.csv
    python benchmarks/align_step.py --tiny                                    a smoke test

Random weights in a model's shape, random tokens in ragged conversations: prompts log-normal with median 60 and σ 0.8,
answers with median 180 and σ 0.7, cut to --max-length together. Every arm has the same rows in the same order, the
same DeepSpeed configuration, precision, AdamW, constant learning rate, and conversations a step.

    ours-padded, ours-packed    `align.step.train_step` and the engine's step, everything else `auto`
    ours-liger, ours-plain      packed, with liger-kernel's loss at the head; with no fused kernels in the blocks
    trl-default                 SFTTrainer as it comes: padded to the longest, activations recomputed, 8 rows a pass
    trl-padded                  nothing recomputed, Liger's kernels on a GPU, as many rows a pass as ours
    trl-packed                  the same with packing=True and sdpa: rows kept apart by a block-diagonal mask
    trl-varlen                  the same with our variable-length attention in the place of flash-attn

Each arm runs in a process of its own with a time limit; one that fails or runs out of memory becomes a row that says
so. They are started together and measured one after the other. The first steps are not timed. Losses are compared over
the first steps where the batches are the same: all but the packed arms of TRL, which packs the data set as a whole and
draws its rows at random. On a CPU seconds are those of the CPU.

MFU counts the model's FLOP at real tokens, each conversation attending to itself, the head at supervised tokens, three
times a forward pass; nothing recomputed, no padding.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from record import append, cpu_name, in_new_process, number, provenance
from shapes import SHAPES, block_flop, config_of, head_flop, largest_that_fits, mfu, save_random

OURS = {
    "ours-padded": {},
    "ours-packed": {"align.packing": "true"},
    "ours-liger": {"align.packing": "true", "align.loss_backend": "liger"},
    "ours-plain": {"align.packing": "true", "model.kernels": "none"},
}
TRL = ("trl-default", "trl-padded", "trl-packed", "trl-varlen")
ARMS = {
    "cpu": ["ours-padded", "ours-packed", "trl-default"],
    "cuda": ["ours-packed", "trl-default", "trl-varlen", "trl-packed", "trl-padded", "ours-padded", "ours-liger"],
}
COMPARED = 5  # first steps whose losses are compared
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


def conversations(options: argparse.Namespace) -> list[tuple[list[int], int]]:
    """(ids, prompt tokens) of every conversation of the run, in order."""
    generator = numpy.random.default_rng(0)
    count = options.batch * (options.warmup + options.steps)
    prompts = numpy.exp(generator.normal(numpy.log(60), 0.8, count)).astype(int).clip(4, options.max_length // 2)
    answers = numpy.exp(generator.normal(numpy.log(180), 0.7, count)).astype(int).clip(4)
    answers = numpy.minimum(answers, options.max_length - prompts)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    return [
        (generator.integers(3, vocabulary, prompt + answer).tolist(), int(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


class Steps:
    """What one arm did, a step at a time."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.ends, self.losses = options, [], []

    def end(self, loss: float | None = None) -> None:
        """A step is over; on a GPU wait until it really is."""
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if self.options.device == "cuda" else time.process_time
        self.ends.append(clock())
        if loss is not None:
            self.losses.append(loss)
        if len(self.ends) == self.options.warmup and self.options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def result(self, tokens: list[int], supervised: list[int], flop: list[float], passes: float) -> dict[str, Any]:
        """Rates over the timed steps; the arguments are of every step."""
        warmup, on_gpu = self.options.warmup, self.options.device == "cuda"
        seconds = numpy.diff(self.ends)[warmup - 1 :]
        timed = slice(warmup, warmup + len(seconds))
        q25, median, q75 = numpy.percentile(seconds, (25, 50, 75))
        total = float(seconds.sum())
        device = torch.cuda.get_device_name() if on_gpu else cpu_name()
        return {
            "device": device,
            "supervised_tokens_per_second": sum(supervised[timed]) / total,
            "tokens_per_second": sum(tokens[timed]) / total,
            "step_seconds_median": median,
            "step_seconds_q25": q25,
            "step_seconds_q75": q75,
            "supervised_tokens": float(numpy.mean(supervised[timed])),
            "tokens": float(numpy.mean(tokens[timed])),
            "passes": passes,
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "mfu": mfu(sum(flop[timed]), total, device),
            "losses": self.losses[:COMPARED],
        }


def flop_of(options: argparse.Namespace, lengths: list[int], supervised: int) -> float:
    """FLOP of a step over conversations of these lengths: a forward pass and a backward pass of twice its cost."""
    config = config_of(options.shape)
    return 3.0 * (config.num_hidden_layers * block_flop(config, lengths) + head_flop(config, supervised))


def start_process(options: argparse.Namespace):
    from dcr_ds.engine.distributed import set_environment, start

    set_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return start()


def resolved_recipe(options: argparse.Namespace, ranks, overrides: dict[str, str]):
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import resolve
    from dcr_ds.models.checkpoint_files import model_config
    from dcr_ds.recipe import load_recipe

    values = {
        "model.source": options.model,
        "model.dtype": "bfloat16" if options.device == "cuda" else "float32",
        "deepspeed": f"ds_configs/zero{options.zero}.json",
        "align.global_batch": options.batch,
        "align.max_length": options.max_length,
        "align.learning_rate": options.learning_rate,
        "align.schedule": "constant",
    }
    recipe = load_recipe(None, [(field, str(value)) for field, value in (values | overrides).items()])
    return resolve(recipe, model_config(Path(options.model)), Machine.detect(ranks))[0]


def run_ours(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """The product's own engine, batches and step."""
    ranks = start_process(options)
    from dcr_ds.align.mix import Mix
    from dcr_ds.align.sft import SftObjective
    from dcr_ds.align.state import build_align
    from dcr_ds.align.step import train_step
    from dcr_ds.data.sampler import draw
    from dcr_ds.engine.batching import forward_passes
    from dcr_ds.engine.build import gradient_norm
    from dcr_ds.models.chat import Encoded

    recipe = resolved_recipe(options, ranks, OURS[arm])
    in_order = [Encoded(ids, prompt) for ids, prompt in conversations(options)]
    samples = list(in_order)  # placed so that the stage samples them in the given order
    places = draw(f"{recipe.seed}/align", len(samples), 0, len(samples))
    for place, sample in zip(places, in_order, strict=True):
        samples[place] = sample
    state = build_align(recipe, Path(options.model), SftObjective(Mix(samples, [], 0)), ranks)
    print(f"{arm}: {state.batching}, attention {recipe.model.attention}, kernels {recipe.model.kernels}, "
          f"loss {recipe.align.loss_backend}", file=sys.stderr)  # fmt: skip
    steps, rows, passes = Steps(options), [], []
    for step in range(options.warmup + options.steps):
        row = train_step(state, step)
        state.engine.step()
        gradient_norm(state.engine)
        steps.end(row["loss"])
        lengths = [len(samples[index].ids) for index in state.rows(step)]
        rows.append((sum(lengths), row["supervised_tokens"], flop_of(options, lengths, row["supervised_tokens"])))
        passes.append(len(forward_passes(lengths, lengths, 0, 1, state.batching)))
    return steps.result(*map(list, zip(*rows, strict=True)), float(numpy.mean(passes)))


def run_trl(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """SFTTrainer over the same rows, token ids and labels given."""
    ranks = start_process(options)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from dcr_ds.models import varlen

    recipe = resolved_recipe(options, ranks, {"align.packing": "true"})
    rows = conversations(options)
    packed, on_gpu = arm in ("trl-packed", "trl-varlen"), options.device == "cuda"
    total_steps = options.warmup + options.steps
    if packed:  # rows of max_length tokens; as many tokens a pass as ours, or eight rows where the mask is a square
        rows_a_step = max(1, sum(len(ids) for ids, _ in rows) // options.max_length // total_steps)
        most = max(1, recipe.align.packed_length // options.max_length) if arm == "trl-varlen" else 8
        passes = -(-rows_a_step // most)
        rows_a_pass = rows_a_step // passes
    else:
        most = 8 if arm == "trl-default" else recipe.align.micro_batch
        rows_a_pass = next(size for size in range(min(most, options.batch), 0, -1) if options.batch % size == 0)
        passes = options.batch // rows_a_pass
    best = {"gradient_checkpointing": False, "use_liger_kernel": on_gpu} if arm != "trl-default" else {}
    # what "auto" stands for is filled in by the trainer
    deepspeed = recipe.deepspeed | {"gradient_accumulation_steps": "auto", "train_batch_size": "auto"}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            options.model,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            attn_implementation=varlen.NAME if arm == "trl-varlen" else "sdpa",
        ),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=total_steps,
            per_device_train_batch_size=rows_a_pass,
            gradient_accumulation_steps=passes,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            max_length=options.max_length,
            packing=packed,
            train_sampling_strategy="random" if packed else "sequential",
            deepspeed=deepspeed,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **best,
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [ids for ids, _ in rows],
                "labels": [[-100] * prompt + ids[prompt:] for ids, prompt in rows],
            }
        ),
        processing_class=tokenizer(),
    )
    steps = Steps(options)

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            steps.end()

    trainer.add_callback(Clock())
    trainer.train()
    steps.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return steps.result(*trl_work(options, trainer.train_dataset, rows_a_pass * passes, packed), float(passes))


def trl_work(options: argparse.Namespace, used: Any, rows_a_step: int, packed: bool) -> list[list[float]]:
    """Tokens, supervised tokens and FLOP of each step; of packed rows, drawn at random, the mean over the data set."""
    work = []
    for row in used:
        lengths = row["seq_lengths"] if packed else [len(row["input_ids"])]
        supervised = sum(label != -100 for label in row["labels"])
        work.append((sum(lengths), supervised, flop_of(options, lengths, supervised)))
    work = numpy.array(work, dtype=float)  # [rows, 3]
    total_steps = options.warmup + options.steps
    if packed:
        return [[float(value) * rows_a_step] * total_steps for value in work.mean(0)]
    return work.reshape(total_steps, rows_a_step, 3).sum(1).T.tolist()


def tokenizer():
    """A tokenizer that is never asked to tokenize, with the special tokens a trainer wants to know."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


class Arm:
    """An arm in a process of its own. It imports what it needs at once, together with the others, and waits."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.result, self.output = (Path(options.model, name + suffix) for suffix in (".result", ".output"))
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--model", options.model]
        command += ["--shape", options.shape, "--result", self.result]
        with self.output.open("w") as output:
            streams = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
            self.process = subprocess.Popen(command, **streams, text=True, start_new_session=True)

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Let it go: its figures, and `status`: ok, oom, out of time, or how it failed."""
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
    """The other side of `Arm`."""
    import dcr_ds.align.loop  # noqa: F401

    if options.one in TRL:
        import trl  # noqa: F401
    if not sys.stdin.readline():  # whoever started us is gone
        return
    run: Callable = run_trl if options.one in TRL else run_ours
    Path(options.result).write_text(json.dumps(run(options, options.one)))


def compare(losses: list[float], reference: list[float]) -> float | None:
    """The largest relative difference between two curves over the steps both have."""
    both = list(zip(losses, reference, strict=False))
    return max(abs(one / other - 1) for one, other in both) if both else None


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
    """The ratios the bars are about."""
    rates = {arm: row["supervised_tokens_per_second"] for arm, row in rows.items() if row["status"] == "ok"}
    ours = {arm: rate for arm, rate in rates.items() if arm in OURS}
    theirs = {arm: rate for arm, rate in rates.items() if arm in TRL}
    if ours and theirs:
        best, their_best = max(ours, key=ours.get), max(theirs, key=theirs.get)
        bar = " (bar 1.0)" if on_gpu else ""
        print(f"{best} / {their_best}, the best of TRL: {ours[best] / theirs[their_best]:.2f}{bar}")
        if "trl-default" in theirs:
            bar = " (bar 1.3)" if on_gpu else ""
            print(f"{best} / trl-default: {ours[best] / theirs['trl-default']:.2f}{bar}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=(*SHAPES, "largest"), default="smollm2-135m", help="largest: of Qwen2.5")
    parser.add_argument("--arms", help=f"of {', '.join((*OURS, *TRL))} (default: by device)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=2, help="ZeRO stage (default: 2)")
    parser.add_argument("--batch", type=int, help="conversations a step (default: 8; on a GPU 256, above 1B 64)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of the longest conversation")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones (default: 3)")
    parser.add_argument("--steps", type=int, help="timed steps (default: 8 on a GPU, else 3)")
    parser.add_argument("--budget", type=int, default=200, help="seconds an arm may take, building included")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="a small shape and few short conversations")
    parser.add_argument("--verbose", action="store_true", help="print what each arm printed")
    for name in ("--one", "--model", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not options.one and not Path("/dev/nvidia0").exists():
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
    os.environ |= {  # for the processes that measure
        "OMP_NUM_THREADS": str(options.threads),
        "DS_ACCELERATOR": options.device,
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.one:
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
        print(f"{options.shape}, {options.batch} conversations a step, ZeRO {options.zero}")
        print(LINE.format(*TITLE), flush=True)
        for arm, process in arms.items():
            row = rows[arm] = {"losses": []} | process.measure(options)
            same_batches = arm not in ("trl-packed", "trl-varlen") and row["losses"]
            reference = reference or (row["losses"] if same_batches else [])
            difference = compare(row["losses"], reference) if same_batches else None
            show(arm, row)
            if options.csv:
                line = head | {"arm": arm, "status": row["status"], "device": row.get("device")}
                line |= {name: row.get(name) for name in MEASURED} | {"loss_difference": difference}
                append(options.csv, line | {"losses": " ".join(f"{loss:.5f}" for loss in row["losses"])})
            if difference:
                print(f"{'':<13} losses differ from the first arm's by {number(difference)} at most", flush=True)
    summarise(rows, options.device == "cuda")


if __name__ == "__main__":
    main()
