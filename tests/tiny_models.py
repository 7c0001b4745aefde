"""A tiny random model with a chat template, and child processes that generate with it (and may be killed)."""

import multiprocessing
import os
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dcr_ds.data import Benchmark, Conversation, Prompt, PromptSet
from dcr_ds.diagnose.openings import Opening, Openings
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate import generate
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.evaluate.log_odds import LogOdds, LogOddsMeasurement, log_odds_file
from dcr_ds.models.chat import encode_conversation
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))
TIMEOUT_SECONDS = 60
PROMPTS = [
    Prompt(f"p{i}", "how do I " + "really " * (i * 7 % 5) + f"kill process {i}?", category="abc"[i % 3])
    for i in range(13)
]
CONVERSATIONS = [
    Conversation(
        f"c{i}",
        (
            {"role": "user", "content": "say " * (1 + i % 4)},
            {"role": "assistant", "content": f"{i} words " * (1 + i * 3 % 7)},
        ),
    )
    for i in range(9)
]


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save a byte-level tokenizer and a random Llama whose answers depend on the prompt and sometimes end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger than the others, so that it is sometimes chosen
        model.lm_head.weight[fast.eos_token_id] *= 1.7
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple:
    return load_causal_lm(folder, torch.float32, "sdpa", ONE_RANK.device), load_tokenizer(folder)


def generations_for(tokenizer, file: Path, prompts=PROMPTS, batch_size: int = 3, max_new_tokens: int = 12):
    benchmark = Benchmark("tiny", "comply", PromptSet("tiny", "test", prompts, "0" * 64))
    return generate.prepare_generations(
        benchmark, file, tokenizer, generate.Decoding(max_new_tokens, batch_size), {"content": "tiny"}
    )


def run_children(target, world_size: int, *arguments) -> list[int]:
    """Run `target(rank, world_size, …)` per rank and return the exit codes. A hang is an error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_models", "dcr_ds.evaluate.run", "transformers.models.llama.modeling_llama"])
    children = [context.Process(target=target, args=(rank, world_size, *arguments)) for rank in range(world_size)]
    for child in children:
        child.start()
    for child in children:
        child.join(TIMEOUT_SECONDS)
        if child.is_alive():
            child.kill()
            raise AssertionError("a rank hangs")
    return [child.exitcode for child in children]


def answer_in_child(rank: int, world_size: int, folder: Path, file: Path, rendezvous: Path, kill: str) -> None:
    """Answer the tiny benchmark; `kill` is where the process dies: nowhere, after N batches, at rename, at unlink."""
    ranks = join(rank, world_size, rendezvous)
    model, tokenizer = load(folder)
    batches_done = 0

    def spend(seconds: float) -> None:
        nonlocal batches_done
        batches_done += 1
        if kill == f"after {batches_done}":
            _kill_self()

    if kill == "at rename":  # the last batch: the finished file has its temporary name
        replace = os.replace
        os.replace = lambda aside, path: _kill_self() if batches_done else replace(aside, path)
    if kill == "at unlink":  # the finished file exists, and so do its parts
        Path.unlink = lambda path, missing_ok=False: _kill_self()
    generate.generate_missing(generations_for(tokenizer, file), model, tokenizer, ranks, spend)


def measure_log_odds(model, tokenizer, out: Path, ranks: Ranks) -> tuple[int, str | None]:
    """Answer the prompts that have no answer yet, and measure the log-odds of all.

    Returns the number of prompts that were read with their answers, and the problem, if any.
    """
    answers = generations_for(tokenizer, out / "generations.jsonl")
    listed = [Opening(text, tuple(tokenizer(text).input_ids), "data", 0.5, 0.0) for text in ("I c", "I'm", "So", "No")]
    openings = Openings(tuple(listed), (), (), 0.5, 0.0)
    target = log_odds_file(out / "log_odds.jsonl", answers, openings, {"content": "tiny"})
    cost = Cost(out / "cost.json", "CPU", ranks.world_size, ranks.is_main)
    measurement = LogOddsMeasurement(model, LogOdds(openings, [target]), cost, ranks)
    generate.generate_missing(answers, model, tokenizer, ranks, before=partial(measurement.after_answers, out))
    return len(target.rows()), measurement.finish(3)


def loss_in_child(rank: int, world_size: int, folder: Path, out: Path, rendezvous: Path) -> None:
    ranks = join(rank, world_size, rendezvous)
    model, tokenizer = load(folder)
    encoded = [encode_conversation(tokenizer, conversation.messages) for conversation in CONVERSATIONS]
    result = general_loss(model, encoded, 2, ranks)
    if rank == 0:
        out.write_text(f"{result['loss']!r} {result['tokens']} {result['n']}")


def join(rank: int, world_size: int, rendezvous: Path) -> Ranks:
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size,
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
        )  # fmt: skip
    return Ranks(rank, world_size, rank, ONE_RANK.device)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
