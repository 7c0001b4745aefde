"""Generation: one model answers one benchmark, greedily, into a file of rows.

The batches are a pure function of the whole list of prompts, and a batch is written in one piece when it
is done. A run that was killed therefore goes on with the batches that are missing, on any number of ranks,
and ends with the rows an undisturbed run would have written: padding changes the last bits of logits, so a
prompt always meets the same neighbours.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Prompt
from dcr_ds.engine.ranks import Ranks, barrier, from_main, say
from dcr_ds.errors import UserError
from dcr_ds.evaluate.files import hash_of, json_line, read_jsonl, write_jsonl
from dcr_ds.models.chat import encode_prompt, template_hash, turn_end_ids


@dataclass(frozen=True)
class Questions:
    """One benchmark as one model reads it; `settings_hash` covers everything its answers depend on."""

    name: str
    file: Path
    prompts: Sequence[Prompt]
    ids: list[list[int]]
    max_new_tokens: int
    batch_size: int
    template_hash: str
    settings_hash: str


def prepare_questions(
    name: str,
    file: Path,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    batch_size: int,
    model_facts: dict[str, str],
) -> Questions:
    """Render the prompts of a benchmark.

    Args:
        model_facts: what the answers depend on beside prompts and decoding (content hash of the model, dtype,
            attention kernel); goes into the settings hash.
    """
    ids = [encode_prompt(tokenizer, prompt.prompt) for prompt in prompts]
    settings = {
        "decoding": {"greedy": True, "max_new_tokens": max_new_tokens, "batch_size": batch_size},
        "model": model_facts,
        "template": template_hash(tokenizer),
        "turn_end_ids": turn_end_ids(tokenizer),
        "prompts": [[prompt.id, prompt.prompt] for prompt in prompts],
        "ids": ids,
    }
    return Questions(name, file, prompts, ids, max_new_tokens, batch_size, settings["template"], hash_of(settings))


def are_answered(questions: Questions) -> bool:
    """Whether the file holds every row, in the order of the prompts, generated under these settings."""
    rows = read_jsonl(questions.file)
    return (
        [row["id"] for row in rows] == [prompt.id for prompt in questions.prompts]
        and all(row.get("settings_hash") == questions.settings_hash for row in rows)
        and not _part_files(questions.file)
    )


def check_context(questions: Questions, context_tokens: int | None) -> None:
    """Refuse prompts that leave no room for an answer in the model's context (None: it has no fixed one)."""
    if context_tokens is None:
        return
    room = context_tokens - questions.max_new_tokens
    for prompt, ids in zip(questions.prompts, questions.ids, strict=True):
        if len(ids) > room:
            raise UserError(
                f"benchmark {questions.name}: prompt {prompt.id} has {len(ids)} tokens, but of the model's "
                f"context of {context_tokens} evaluate.max_new_tokens={questions.max_new_tokens} leaves "
                f"{room}; lower it, or take the prompt out"
            )


def answer_questions(
    questions: Questions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
    spend: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Generate the answers that are missing and finish the file. All ranks; each has the whole model.

    A single process appends to the file itself; of several ranks each appends to its own part, and rank 0
    merges the parts at the end. The finished file is in the order of the prompts.

    Args:
        spend: called with the seconds of each batch as soon as it is on disk.
    """
    batches = make_batches([len(ids) for ids in questions.ids], questions.batch_size)
    done = set(from_main(_collect(questions, batches, ranks) if ranks.is_main else None, ranks))
    mine = [number for number in range(ranks.rank, len(batches), ranks.world_size) if number not in done]
    file = questions.file if ranks.world_size == 1 else _part_file(questions.file, ranks.rank)
    show = ranks.is_main and sys.stderr.isatty()
    with (
        file.open("ab") as out,
        tqdm(total=len(mine), desc=questions.name, unit="batch", disable=not show) as bar,
    ):
        for number in mine:
            start = time.perf_counter()
            rows = _answer_batch(questions, batches[number], model, tokenizer)
            out.write("".join(json_line(row) for row in rows).encode())
            out.flush()
            spend(time.perf_counter() - start)
            bar.update()
    barrier(ranks)
    if ranks.is_main:
        _merge(questions)
    barrier(ranks)


def make_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches of like length, longest first.

    Longest first, so that a batch that does not fit into memory shows at once and not at the end, and so that
    the last batches, where ranks wait for each other, are the short ones.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _answer_batch(
    questions: Questions, batch: list[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    ends = turn_end_ids(tokenizer)
    rows = []
    for index, ids in zip(batch, _generate(questions, batch, model, tokenizer, ends), strict=True):
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        # Cut at the end of the turn before decoding: padding follows, and the end may be no special token.
        text = tokenizer.decode(ids[:stop], skip_special_tokens=True).strip()
        rows.append(
            {
                "id": questions.prompts[index].id,
                "prompt": questions.prompts[index].prompt,
                "completion": text,
                "tokens": len(ids) if stop is None else stop + 1,
                "finish": "length" if stop is None else "stop",
                "template_hash": questions.template_hash,
                "settings_hash": questions.settings_hash,
            }
        )
    return rows


@torch.inference_mode()
def _generate(
    questions: Questions,
    batch: list[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
) -> list[list[int]]:
    """New tokens of each prompt of a batch; left-padded, so that every answer starts at the same position."""
    prompts = [questions.ids[index] for index in batch]
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    # transformers fills what a generation config leaves open from the model's own, so a repetition penalty
    # shipped with a chat model would slip into greedy decoding. Therefore the model's own is replaced.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=questions.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    output = model.generate(input_ids=tokens, attention_mask=mask)
    return output[:, width:].tolist()


def _collect(questions: Questions, batches: list[list[int]], ranks: Ranks) -> list[int]:
    """Gather what earlier runs left into one clean file; returns the numbers of the whole batches. Rank 0."""
    parts = _part_files(questions.file)
    found = [row for file in [questions.file, *parts] for row in read_jsonl(file)]
    usable = [row for row in found if row.get("settings_hash") == questions.settings_hash]
    rows = {row["id"]: row for row in usable}
    if len(usable) < len(found):
        say(ranks, f"{questions.file}: made with another model or other settings; generated anew")
    done = [
        number for number, batch in enumerate(batches) if all(questions.prompts[index].id in rows for index in batch)
    ]
    kept = [rows[questions.prompts[index].id] for number in done for index in batches[number]]
    if kept:
        say(ranks, f"{questions.file}: going on after {len(kept)} of {len(questions.prompts)} answers")
    write_jsonl(questions.file, kept)
    for part in parts:
        part.unlink()
    return done


def _merge(questions: Questions) -> None:
    """Write the finished file, in the order of the prompts, and remove the parts. Rank 0."""
    parts = _part_files(questions.file)
    rows = {row["id"]: row for file in [questions.file, *parts] for row in read_jsonl(file)}
    missing = [prompt.id for prompt in questions.prompts if prompt.id not in rows]
    if missing:  # a lost answer must never shrink a benchmark silently
        raise RuntimeError(f"{questions.file}: {len(missing)} answers were not written, the first is {missing[0]}")
    write_jsonl(questions.file, [rows[prompt.id] for prompt in questions.prompts])
    for part in parts:
        part.unlink()


def _part_file(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.stem}.rank{rank:04d}{file.suffix}")


def _part_files(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.stem}.rank*{file.suffix}"))
