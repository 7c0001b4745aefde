"""Generation: one model answers one benchmark, greedily, into a file of rows.

The batches are a pure function of the whole list of prompts, and a batch is written in one piece when it
is done. A run that was killed therefore goes on with the batches that are missing, on any number of ranks,
and ends with the rows an undisturbed run would have written: padding changes the last bits of logits, so a
prompt always meets the same neighbours.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Prompt
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.errors import UserError
from dcr_ds.evaluate.answers import Questions, answer_row, collect, finish, own_file
from dcr_ds.files import hash_of, json_line
from dcr_ds.models.chat import encode_prompt, template_hash, turn_end_ids


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
    settings: dict[str, Any] = {
        "decoding": {"greedy": True, "max_new_tokens": max_new_tokens, "batch_size": batch_size},
        "model": model_facts,
        "template": template_hash(tokenizer),
        "turn_end_ids": turn_end_ids(tokenizer),
        "prompts": [[prompt.id, prompt.prompt] for prompt in prompts],
        "ids": ids,
    }
    return Questions(name, file, prompts, max_new_tokens, hash_of(settings), batch_size, ids, settings["template"])


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

    The finished file is in the order of the prompts.

    Args:
        spend: called with the seconds of each batch as soon as it is on disk.
    """
    batches = make_batches([len(ids) for ids in questions.ids], questions.batch_size)
    done = set(broadcast_from_main(collect(questions, batches, ranks) if ranks.is_main else None, ranks))
    mine = [number for number in range(ranks.rank, len(batches), ranks.world_size) if number not in done]
    show = ranks.is_main and sys.stderr.isatty()
    with (
        own_file(questions, ranks).open("ab") as out,
        tqdm(total=len(mine), desc=questions.name, unit="batch", disable=not show) as bar,
    ):
        for number in mine:
            start = time.perf_counter()
            rows = answer_batch(questions, batches[number], model, tokenizer)
            out.write("".join(json_line(row) for row in rows).encode())
            out.flush()
            spend(time.perf_counter() - start)
            heartbeat(f"evaluate {questions.name}, batch {number + 1} of {len(batches)}")
            bar.update()
    barrier(ranks)
    if ranks.is_main:
        finish(questions)
    barrier(ranks)


def make_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches of like length, longest first.

    Longest first, so that a batch that does not fit into memory shows at once and not at the end, and so that
    the last batches, where ranks wait for each other, are the short ones.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batch(
    questions: Questions, batch: Sequence[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    """The rows of a few prompts, generated together."""
    ends = turn_end_ids(tokenizer)
    rows = []
    for index, ids in zip(batch, _generate(questions, batch, model, tokenizer, ends), strict=True):
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        # Cut at the end of the turn before decoding: padding follows, and the end may be no special token.
        text = str(tokenizer.decode(ids[:stop], skip_special_tokens=True)).strip()
        tokens, ending = (len(ids), "length") if stop is None else (stop + 1, "stop")
        rows.append(answer_row(questions, index, text, tokens, ending))
    return rows


@torch.inference_mode()
def _generate(
    questions: Questions,
    batch: Sequence[int],
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
    output = cast(GenerationMixin, model).generate(input_ids=tokens, attention_mask=mask)
    return output[:, width:].tolist()
