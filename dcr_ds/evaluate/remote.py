"""Generation behind an OpenAI-compatible endpoint (vLLM, llama.cpp, a hosted model): same questions, same rows.

The server renders the prompts by a template of its own and batches them as it likes, so an answer may differ in a later
run; what is there is not asked again.
"""

import time
from collections.abc import Callable
from pathlib import Path

from dcr_ds.data import Benchmark
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.evaluate.answers import Questions, answer_row, collect, finish
from dcr_ds.files import hash_of, json_line
from dcr_ds.models.endpoint import Endpoint


def prepare_remote(benchmark: Benchmark, file: Path, max_new_tokens: int, endpoint: Endpoint) -> Questions:
    """The prompts of a benchmark as an endpoint gets them: one user message each."""
    prompts = benchmark.prompts.rows
    settings = {
        "decoding": {"greedy": True, "max_new_tokens": max_new_tokens},
        "endpoint": [endpoint.url, endpoint.model],
        "prompts": [[prompt.id, prompt.prompt] for prompt in prompts],
    }
    return Questions(benchmark.name, file, prompts, max_new_tokens, hash_of(settings))


def ask_questions(
    questions: Questions,
    endpoint: Endpoint,
    ranks: Ranks,
    spend: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Ask for the answers that are missing and finish the file. Rank 0.

    Args:
        spend: called with the seconds since the last answer as soon as one is on disk.

    Raises:
        UserError: the endpoint refuses, or is down; what was answered is kept.
    """
    done = set(collect(questions, [[index] for index in range(len(questions.prompts))], ranks))
    missing = [index for index in range(len(questions.prompts)) if index not in done]
    conversations = [[{"role": "user", "content": questions.prompts[index].prompt}] for index in missing]
    start = time.perf_counter()
    with questions.file.open("ab") as out:
        for number, reply in endpoint.complete_all(conversations, questions.max_new_tokens):
            row = answer_row(questions, missing[number], reply.text.strip(), reply.completion_tokens, reply.finish)
            out.write(json_line(row).encode())
            out.flush()
            heartbeat(f"{questions.name}, an answer of {endpoint.model}")
            spend(time.perf_counter() - start)
            start = time.perf_counter()
    finish(questions)
