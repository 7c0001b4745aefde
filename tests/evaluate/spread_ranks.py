"""What ranks do that hold a model together: evaluate it, and note how much of it each one has."""

import json
import os
import signal
from pathlib import Path

import torch
from tiny_models import CONVERSATIONS, PROMPTS, join

from dcr_ds.data import Benchmark, Conversation, ConversationSet, PromptSet, RunData
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate import run
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.tensor_parallel import load_spread, own_rows
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import ModelFolder

REFUSAL = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "I cannot do that."})


def evaluate(source: Path, home: Path, ranks: Ranks, per_copy: int) -> None:
    """Answers, log-odds and general loss of a model, into the folder `home`."""
    refusals = [Conversation(f"r{index}", REFUSAL) for index in range(5)]
    data = RunData(
        benchmarks=[Benchmark("tiny", "comply", PromptSet("tiny", "test", PROMPTS, "0" * 64))],
        evaluate_general=ConversationSet("general", "test", list(CONVERSATIONS), "1" * 64),
        refusal_examples=ConversationSet("refusals", "test", refusals, "2" * 64),
        ordinary_examples=ConversationSet("general", "test", list(CONVERSATIONS), "3" * 64),
    )
    settings = EvaluateSection(
        max_new_tokens=6, batch_size=2, judges=["xstest_strings"], ranks_per_copy=per_copy, models=["aligned"]
    )
    model = EvaluatedModel("aligned", ModelFolder(home), source, torch.float32, "sdpa")
    run.evaluate_model(model, data, settings, ranks)


def evaluate_in_child(rank: int, world_size: int, source: Path, home: Path, rendezvous: Path, kill: int) -> None:
    """Evaluate with two ranks per copy; this process is killed after so many batches, with 0 never.

    Writes the share of the model's bytes that this rank holds to `home`/rank<N>.json.
    """
    ranks = join(rank, world_size, rendezvous)
    spend, load = Cost.spend, EvaluatedModel.load
    batches = 0

    def spend_or_die(self: Cost, part: str, *arguments) -> None:
        nonlocal batches
        spend(self, part, *arguments)
        if part == "log_odds":  # those of a batch are on disk before its answers are
            return
        batches += 1
        if batches == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def load_and_note(self: EvaluatedModel, *arguments):
        model = load(self, *arguments)
        parts = {own_rows(weight).data_ptr(): own_rows(weight).numel() for weight in model.parameters()}
        whole = sum(weight.numel() for weight in model.parameters())
        (home / f"rank{rank}.json").write_text(json.dumps(sum(parts.values()) / whole))
        return model

    Cost.spend, EvaluatedModel.load = spend_or_die, load_and_note
    evaluate(source, home, ranks, 2)


@torch.inference_mode()
def compare_in_child(rank: int, world_size: int, folders: dict[str, Path], out: Path, rendezvous: Path) -> None:
    """Compare spread models with whole ones: the largest difference of logits, and whether greedy answers are equal."""
    ranks = join(rank, world_size, rendezvous)
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    compared = {}
    for kind, folder in folders.items():
        attention = "eager" if kind == "gemma2" else "sdpa"
        whole = load_causal_lm(folder, torch.float32, attention, ranks.device)
        spread = load_spread(folder, torch.float32, attention, world_size, ranks.device)
        difference = (whole(input_ids=ids).logits - spread(input_ids=ids).logits).abs().max().item()
        answers = [
            model.generate(input_ids=ids, do_sample=False, max_new_tokens=8).tolist() for model in (whole, spread)
        ]
        compared[kind] = (difference, answers[0] == answers[1])
    if rank == 0:
        out.write_text(json.dumps(compared))


def load_in_child(rank: int, world_size: int, folders: list[Path], out: Path, rendezvous: Path) -> None:
    """Load the models one after the other, and write the growth of the peak of resident memory by the last, in bytes.

    It counts the mapped pages of the files that are read.
    """
    ranks = join(rank, world_size, rendezvous)
    for folder in folders:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
        before = _resident("VmRSS")
        load_spread(folder, torch.float32, "sdpa", world_size, ranks.device)
        (out / f"rank{rank}").write_text(str(_resident("VmHWM") - before))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
