"""The arms of align_step.py: one function per training library, and what both measure."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from measuring import seconds_now
from record import device_name
from shapes import SHAPES, block_flop, config_of, head_flop, mfu

OURS = {
    "ours-padded": {},
    "ours-packed": {"align.packing": "true"},
    "ours-liger": {"align.packing": "true", "align.loss_backend": "liger"},
    "ours-plain": {"align.packing": "true", "model.kernels": "none"},
}
TRL_PACKED = ("trl-packed", "trl-varlen")
TRL = ("trl-default", "trl-padded", *TRL_PACKED)
COMPARED = 5  # the losses of this many first steps are compared


def conversations(options: argparse.Namespace) -> list[tuple[list[int], int]]:
    """(token ids, number of prompt tokens) for each conversation of the run, in order."""
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
    """End time and loss of each step of an arm."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.ends, self.losses = options, [], []

    def end(self, loss: float | None = None) -> None:
        """Record the end of a step."""
        self.ends.append(seconds_now(self.options.device))
        if loss is not None:
            self.losses.append(loss)
        if len(self.ends) == self.options.warmup and self.options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def result(self, tokens: list[int], supervised: list[int], flop: list[float], passes: float) -> dict[str, Any]:
        """Rates over the timed steps, from the tokens, supervised tokens and FLOP per step, warm-up included."""
        warmup, on_gpu = self.options.warmup, self.options.device == "cuda"
        seconds = numpy.diff(self.ends)[warmup - 1 :]
        timed = slice(warmup, warmup + len(seconds))
        q25, median, q75 = numpy.percentile(seconds, (25, 50, 75))
        total = float(seconds.sum())
        device = device_name(self.options.device)
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
    """FLOP of a step over conversations of these lengths; the backward pass costs twice the forward pass."""
    config = config_of(options.shape)
    return 3.0 * (config.num_hidden_layers * block_flop(config, lengths) + head_flop(config, supervised))


def start_engine_process():
    from dcr_ds.engine.distributed import start
    from dcr_ds.engine.launcher import set_environment

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
    """Train with `align.step.train_step`."""
    ranks = start_engine_process()
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
    samples = list(in_order)  # permuted so that the stage's sampler returns them in the given order
    positions = draw(f"{recipe.seed}/align", len(samples), 0, len(samples))
    for position, sample in zip(positions, in_order, strict=True):
        samples[position] = sample
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
    """Train with SFTTrainer on the same token ids and labels."""
    ranks = start_engine_process()
    from transformers import TrainerCallback

    recipe = resolved_recipe(options, ranks, {"align.packing": "true"})
    rows = conversations(options)
    pass_rows, passes = trl_passes(options, arm, recipe.align, sum(len(ids) for ids, _ in rows))
    trainer = sft_trainer(options, arm, recipe.deepspeed, rows, pass_rows, passes)
    steps = Steps(options)

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            steps.end()

    trainer.add_callback(Clock())
    trainer.train()
    steps.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    work = trl_work(options, trainer.train_dataset, pass_rows * passes, arm in TRL_PACKED)
    return steps.result(*work, float(passes))


def sft_trainer(
    options: argparse.Namespace,
    arm: str,
    deepspeed: dict[str, Any],
    rows: list[tuple[list[int], int]],
    pass_rows: int,
    passes: int,
) -> Any:
    """TRL's trainer over token ids and the lengths of their prompts."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from dcr_ds.models import varlen

    packed, on_gpu = arm in TRL_PACKED, options.device == "cuda"
    tuned = {"gradient_checkpointing": False, "use_liger_kernel": on_gpu} if arm != "trl-default" else {}
    model = AutoModelForCausalLM.from_pretrained(
        options.model,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        attn_implementation=varlen.NAME if arm == "trl-varlen" else "sdpa",
        trust_remote_code=False,
    )
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=options.warmup + options.steps,
        per_device_train_batch_size=pass_rows,
        gradient_accumulation_steps=passes,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_length=options.max_length,
        packing=packed,
        train_sampling_strategy="random" if packed else "sequential",
        # the trainer replaces "auto"
        deepspeed=deepspeed | {"gradient_accumulation_steps": "auto", "train_batch_size": "auto"},
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **tuned,
    )
    labels = [[-100] * prompt + ids[prompt:] for ids, prompt in rows]
    data = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": labels})
    return SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer())


def trl_passes(options: argparse.Namespace, arm: str, align: Any, num_tokens: int) -> tuple[int, int]:
    """Rows per forward pass, and passes per step: of conversations, or packed rows of max_length tokens."""
    if arm not in TRL_PACKED:
        max_rows = 8 if arm == "trl-default" else align.micro_batch
        pass_rows = next(size for size in range(min(max_rows, options.batch), 0, -1) if options.batch % size == 0)
        return pass_rows, options.batch // pass_rows
    # as many tokens per pass as ours, but 8 rows with a dense attention mask
    step_rows = max(1, num_tokens // options.max_length // (options.warmup + options.steps))
    max_rows = max(1, align.packed_length // options.max_length) if arm == "trl-varlen" else 8
    passes = -(-step_rows // max_rows)
    return step_rows // passes, passes


def trl_work(options: argparse.Namespace, used: Any, step_rows: int, packed: bool) -> list[list[float]]:
    """Tokens, supervised tokens and FLOP per step; for packed rows, sampled at random, the mean over the data set."""
    work = []
    for row in used:
        lengths = row["seq_lengths"] if packed else [len(row["input_ids"])]
        supervised = sum(label != -100 for label in row["labels"])
        work.append((sum(lengths), supervised, flop_of(options, lengths, supervised)))
    work = numpy.array(work, dtype=float)  # [rows, 3]
    total_steps = options.warmup + options.steps
    if packed:
        return [[float(value) * step_rows] * total_steps for value in work.mean(0)]
    return work.reshape(total_steps, step_rows, 3).sum(1).T.tolist()


def tokenizer():
    """A tokenizer with the special tokens that a trainer needs; nothing is tokenized."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)
