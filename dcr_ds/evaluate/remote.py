"""Generation with an OpenAI-compatible endpoint (vLLM, llama.cpp, a hosted model): same prompts, same rows.

The server renders prompts with its own template and chooses its own batches, so answers may differ between runs.
Existing answers are not requested again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dcr_ds.data import Benchmark
from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.errors import UserError
from dcr_ds.evaluate.generations import Generations
from dcr_ds.files import hash_of, json_line
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import FAILED, FILTERED, Completion
from dcr_ds.progress import heartbeat


def prepare_remote(benchmark: Benchmark, file: Path, max_new_tokens: int, endpoint: Endpoint) -> Generations:
    """Describe the answers of an endpoint to a benchmark; prompts are sent as messages.

    Raises:
        UserError: the benchmark gives the first words of the answers.
    """
    if benchmark.opening:
        raise UserError(
            f"{benchmark.name}: {endpoint.model} is behind an endpoint, and chat endpoints have no common way to "
            "continue a given answer; evaluate the model from its folder, or leave this attack out"
        )
    prompts = benchmark.prompts.rows
    request: dict[str, Any] = {
        # what the server calls the limit changes no answer
        "decoding": asdict(replace(endpoint.fields, limit="max_tokens")) | {"max_new_tokens": max_new_tokens},
        "endpoint": endpoint.model,  # its address changes from job to job
    }
    settings: dict[str, Any] = request | {"prompts": [[prompt.id, prompt.prompt] for prompt in prompts]}
    if any(len(benchmark.messages(prompt)) > 1 for prompt in prompts) or benchmark.attack:
        settings["messages"] = [benchmark.messages(prompt) for prompt in prompts]
    variables = {name: json.dumps(value) for name, value in (endpoint.fields.chat_template_kwargs or {}).items()}
    return Generations(
        benchmark.name,
        file,
        prompts,
        max_new_tokens,
        hash_of(settings),
        template_variables=variables,
        attack=benchmark.attack,
        asked_hashes={prompt.id: hash_of(request | {"messages": benchmark.messages(prompt)}) for prompt in prompts},
    )


def generate_remote(
    generations: Generations,
    endpoint: Endpoint,
    ranks: Ranks,
    spend: Callable[[float], None] = lambda seconds: None,
    text_of: Callable[[int, Completion], str] = lambda index, reply: reply.text.strip(),
) -> None:
    """Request the missing answers and complete the file. Rank 0.

    Args:
        spend: called after each answer is on disk, with the seconds since the last one.
        text_of: the completion of a prompt, from its index and its reply.

    Raises:
        UserError: the endpoint refuses every request or is down; received answers are kept.
    """
    done = set(generations.resume([[index] for index in range(len(generations.prompts))], ranks))
    missing = [index for index in range(len(generations.prompts)) if index not in done]
    conversations = [list(generations.messages(index)) for index in missing]
    problems: dict[str, dict[str, str]] = {FILTERED: {}, FAILED: {}}
    start = time.perf_counter()
    with generations.file.open("ab") as out:
        for number, reply in endpoint.complete_all(conversations, generations.max_new_tokens, bool(done)):
            index = missing[number]
            if reply.finish in (FILTERED, FAILED):
                problems[reply.finish][generations.prompts[index].id] = reply.problem or "no reason given"
            text = "" if reply.finish == FILTERED else text_of(index, reply)
            row = generations.row(index, text, reply.completion_tokens, reply.finish)
            out.write(json_line(row).encode())
            out.flush()
            heartbeat(f"{generations.benchmark}, an answer of {endpoint.model}")
            spend(time.perf_counter() - start)
            start = time.perf_counter()
    for finish, action in ((FILTERED, "refused"), (FAILED, "failed while it answered")):
        if by_id := problems[finish]:
            first = next(iter(by_id))
            print_on_main(
                ranks,
                f"{generations.benchmark}: the server {action} {len(by_id)} of {len(missing)} prompts; they are "
                f"recorded as {finish}, and unparsed without an answer; to ask them again, remove their rows from "
                f"{generations.file} and repeat the command. The first is {first}: {by_id[first]}",
            )
    generations.finish()
