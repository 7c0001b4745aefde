"""Generation: one model answers one benchmark with greedy decoding, into a file of rows.

The batches are a pure function of the complete list of prompts, and each batch is written as soon as it is done. A
killed run therefore resumes with the missing batches, on any number of ranks, and ends with the rows of an
uninterrupted run: padding changes the last bits of logits, so a prompt is always batched with the same neighbours.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Benchmark, Prompt
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main
from dcr_ds.errors import UserError
from dcr_ds.evaluate.generations import Generations
from dcr_ds.files import hash_of, json_line
from dcr_ds.models.batches import pad_left
from dcr_ds.models.chat import decode_answer, decode_continuation, encode_opened, encode_prompt, turn_end_ids
from dcr_ds.models.hooks.context import answering
from dcr_ds.models.limits import padding_id
from dcr_ds.models.rows import encode_row
from dcr_ds.models.template_variables import saved_variables
from dcr_ds.models.tokenizer import template_hash
from dcr_ds.progress import heartbeat


@dataclass(frozen=True)
class Decoding:
    """Settings of greedy decoding; the batch size counts because padding changes the last bits of logits."""

    max_new_tokens: int
    batch_size: int


def prepare_generations(
    benchmark: Benchmark,
    file: Path,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    model_identity: dict[str, str],
) -> Generations:
    """Encode the prompts of a benchmark and describe the answers; nothing is generated yet.

    Args:
        model_identity: what the answers depend on besides prompts and decoding (content hash of the model, dtype,
            attention kernel); part of the settings hash.

    Raises:
        UserError: a prompt cannot be encoded.
    """
    prompts = benchmark.prompts.rows
    ids = [
        encode_row(f"benchmark {benchmark.name}", row, lambda row: _encode(tokenizer, benchmark, row))
        for row in prompts
    ]
    settings: dict[str, Any] = {
        "decoding": {"greedy": True, **asdict(decoding)},
        "model": model_identity,
        "template": template_hash(tokenizer),
        "turn_end_ids": turn_end_ids(tokenizer),
        "prompts": [[prompt.id, prompt.prompt] for prompt in prompts],
        "ids": ids,
    }
    return Generations(
        benchmark.name,
        file,
        prompts,
        decoding.max_new_tokens,
        hash_of(settings),
        decoding.batch_size,
        ids,
        settings["template"],
        saved_variables(tokenizer.get_chat_template()),
        benchmark.attack,
    )


def _encode(tokenizer: PreTrainedTokenizerBase, benchmark: Benchmark, prompt: Prompt) -> list[int]:
    messages = benchmark.messages(prompt)
    if benchmark.opening:
        return encode_opened(tokenizer, messages, benchmark.opening)
    return encode_prompt(tokenizer, messages)


def check_context(generations: Generations, context: int | None) -> None:
    """Raise if a prompt leaves no room for an answer in the model's context (in tokens; None: unlimited)."""
    if context is None:
        return
    room = context - generations.max_new_tokens
    if room < 1:
        raise UserError(
            f"evaluate.max_new_tokens: {generations.max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens; lower it"
        )
    for prompt, ids in zip(generations.prompts, generations.ids, strict=True):
        if len(ids) > room:
            raise UserError(
                f"benchmark {generations.benchmark}: prompt {prompt.id} has {len(ids)} tokens, but the model's context "
                f"of {context} tokens minus evaluate.max_new_tokens={generations.max_new_tokens} leaves {room}; lower "
                "max_new_tokens, or remove the prompt"
            )


def generate_missing(
    generations: Generations,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
    spend: Callable[[float], None] = lambda seconds: None,
    before: Callable[[Sequence[int], Cache | None], None] | None = None,
) -> None:
    """Generate the missing answers and complete the file, in the order of the prompts.

    All ranks; those of a copy of the model generate the same batches, and the first of them writes the rows.

    Args:
        spend: called with the seconds of each batch once it is on disk.
        before: called before the answers of a batch are written, with the indices of its prompts and the key-value
            cache of prompts and answers, left-padded; it may change the cache, which is None for a model without one.
    """
    batches = make_batches([len(ids) for ids in generations.ids], generations.batch_size)
    done = set(broadcast_from_main(generations.resume(batches, ranks) if ranks.is_main else None, ranks))
    own = [number for number in range(ranks.copy, len(batches), ranks.copies) if number not in done]
    show = ranks.is_main and sys.stderr.isatty()
    with (
        generations.part_file(ranks).open("ab") as out,
        tqdm(total=len(own), desc=generations.benchmark, unit="batch", disable=not show) as bar,
    ):
        for number in own:
            start = time.perf_counter()
            rows, cache = generate_batch(generations, batches[number], model, tokenizer)
            seconds = time.perf_counter() - start
            if before is not None:
                before(batches[number], cache)
            del cache  # before the next batch makes another one
            out.write("".join(json_line(row) for row in rows).encode())
            out.flush()
            spend(seconds)
            heartbeat(f"evaluate {generations.benchmark}, batch {number + 1} of {len(batches)}")
            bar.update()
    barrier(ranks)
    if ranks.is_main:
        generations.finish()
    barrier(ranks)


def make_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches of similar length, longest first.

    Longest first, so that a batch that does not fit into memory fails early, and so that the last batches, in which
    ranks wait for each other, are short.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate_batch(
    generations: Generations, batch: Sequence[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict], Cache | None]:
    """The rows of one batch of prompts, and the key-value cache of prompts and answers."""
    ends = turn_end_ids(tokenizer)
    rows = []
    answers, cache = _new_tokens(generations, batch, model, tokenizer, ends)
    for index, ids in zip(batch, answers, strict=True):
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        # Cut at the end of the turn before decoding: padding follows, and the end need not be a special token.
        text = _completion(tokenizer, generations, index, ids[:stop])
        tokens, ending = (len(ids), "length") if stop is None else (stop + 1, "stop")
        rows.append(generations.row(index, text, tokens, ending))
    return rows, cache


def _completion(tokenizer: PreTrainedTokenizerBase, generations: Generations, index: int, ids: Sequence[int]) -> str:
    """The text of an answer: a given opening and its continuation; "" if the model did not continue it."""
    prompt, opening = generations.ids[index], generations.attack.opening if generations.attack else ""
    if not opening:
        return decode_answer(tokenizer, prompt, ids)
    continuation = decode_continuation(tokenizer, prompt, ids)
    return opening + continuation if continuation.strip() else ""


@torch.inference_mode()
def _new_tokens(
    generations: Generations,
    batch: Sequence[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
) -> tuple[list[list[int]], Cache | None]:
    """The generated tokens of each prompt, and the cache.

    The prompts are left-padded, so that all answers start at the same position.
    """
    prompts = [generations.ids[index] for index in batch]
    pad = padding_id(tokenizer)
    tokens, mask = pad_left(prompts, pad, model.device)
    # transformers fills missing fields of a generation config from the model's own, so a repetition penalty of a chat
    # model would affect greedy decoding. Therefore the model's own config is replaced.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=generations.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    with answering(model, prompts):
        output = cast(Any, model).generate(input_ids=tokens, attention_mask=mask, return_dict_in_generate=True)
    # transformers 5 renames the field
    cache = output.cache if hasattr(output, "cache") else output.past_key_values
    return output.sequences[:, tokens.shape[1] :].tolist(), cache
