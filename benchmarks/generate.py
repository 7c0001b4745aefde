"""Rows per second of generation in sorted batches, compared with unsorted batches and with one prompt at a time.

    python benchmarks/generate.py --rows 64 --csv benchmarks/results/generate.csv
    python benchmarks/generate.py MODEL --benchmarks xstest-safe,or-bench-hard --local-data DIR
    python benchmarks/generate.py --mixed --rows 48 --csv …                  short and long prompts in turn
    python benchmarks/generate.py --tiny                                     a smoke test

sorted: batches of similar length, longest first, as `evaluate.generate` makes them; unsorted: the same prompts in the
order of their files, in batches of the same size; single: one prompt at a time. All three use `generate_batch`,
greedily and left-padded. They take turns, a batch of prompts at a time, so that slow changes of the machine affect all
of them. On a CPU the time is CPU time of the process. Padding changes the last bits of the logits, which can change an
answer where two tokens are almost equally likely: answers are compared with those of single prompts, and rows that
differ are listed.

--mixed: the questions of the built-in general set; every second question follows an excerpt of up to LONGEST_EXCERPT
characters from answers of the set, as in a file of prompts with and without a document.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import seconds_now
from named_model import columns_of, load_model, model_parser
from record import append

from dcr_ds.data.benchmarks import Benchmark, read_benchmarks
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.records import Prompt, PromptSet, digest
from dcr_ds.evaluate.generate import Decoding, generate_batch, make_batches, prepare_generations
from dcr_ds.evaluate.generations import Generations
from dcr_ds.recipe import DataSource, EvaluateSection

SHOWN_CHARACTERS = 60
LONGEST_EXCERPT = 1600  # characters, some 350 tokens


def main() -> None:
    options = parse()
    model, tokenizer = load_model(options)
    prompts = mixed_prompts(options.rows) if options.mixed else read_prompts(options)
    benchmark = Benchmark("generate", "comply", PromptSet("generate", options.benchmarks, prompts, digest(prompts)))
    decoding = Decoding(options.max_new_tokens, options.batch_size)
    generations = prepare_generations(benchmark, Path(), tokenizer, decoding, {})
    answers, seconds = measure(
        generations, lambda batch: generate_batch(generations, batch, model, tokenizer)[0], options.device
    )
    row = columns_of(options) | {
        "benchmarks": "mixed" if options.mixed else options.benchmarks,
        "rows": len(prompts),
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
    }
    row |= {f"{name}_rows_per_second": len(prompts) / spent for name, spent in seconds.items()}
    row |= {f"sorted_over_{name}": seconds[name] / seconds["sorted"] for name in ("unsorted", "single")}
    row |= {f"{name}_identical": share_identical(answers[name], answers["single"]) for name in ("sorted", "unsorted")}
    print_row(row, answers)
    if options.csv:
        append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = model_parser(__doc__, max_new_tokens=32)
    parser.add_argument("--benchmarks", default="builtin", help="names, separated by commas")
    parser.add_argument("--local-data")
    parser.add_argument("--mixed", action="store_true", help="short and long prompts instead of --benchmarks")
    parser.add_argument("--rows", type=int, help="maximum number of rows per benchmark")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.max_new_tokens, options.batch_size = 6, 6, 4
    return options


def read_prompts(options: argparse.Namespace) -> list[Prompt]:
    names = [{"name": name, "rows": options.rows} for name in options.benchmarks.split(",")]
    benchmarks = read_benchmarks(EvaluateSection(benchmarks=names, local_data=options.local_data))
    return [
        Prompt(f"{benchmark.name}/{row.id}", row.prompt) for benchmark in benchmarks for row in benchmark.prompts.rows
    ]


def mixed_prompts(rows: int | None) -> list[Prompt]:
    """Questions, every second one after an excerpt; the excerpts' lengths are evenly spaced and shuffled."""
    conversations = read_conversations(DataSource(source="builtin"), "general").rows[: rows or None]
    questions = [row.messages[-2]["content"] for row in conversations]
    answers = " ".join(row.messages[-1]["content"] for row in conversations)
    lengths = [LONGEST_EXCERPT * (i + 1) // len(questions) for i in range(len(questions))]
    random.Random(0).shuffle(lengths)
    return [
        Prompt(f"mixed/{i}", f"{answers[i * 50 :][:length]}\n\n{question}" if i % 2 else question)
        for i, (question, length) in enumerate(zip(questions, lengths, strict=True))
    ]


def measure(
    generations: Generations, answer: Callable[[Sequence[int]], list[dict]], device: str
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """For each arrangement, its completions by id and its seconds."""
    size, count = generations.batch_size, len(generations.prompts)
    lengths = [len(ids) for ids in generations.ids]
    arrangements = {
        "sorted": make_batches(lengths, size),
        "unsorted": [list(range(start, min(start + size, count))) for start in range(0, count, size)],
        "single": [[index] for index in range(count)],
    }
    answer([0])  # the first call allocates and compiles
    answers: dict[str, dict[str, str]] = {name: {} for name in arrangements}
    seconds = dict.fromkeys(arrangements, 0.0)
    for turn in range(0, count, size):
        for name, batches in arrangements.items():
            share = batches[turn : turn + size] if name == "single" else batches[turn // size : turn // size + 1]
            for batch in share:
                started = seconds_now(device)
                rows = answer(batch)
                seconds[name] += seconds_now(device) - started
                answers[name] |= {row["id"]: row["completion"] for row in rows}
    return answers, seconds


def share_identical(answers: dict[str, str], reference: dict[str, str]) -> float:
    return sum(answers[name] == text for name, text in reference.items()) / len(reference)


def print_row(row: dict, answers: dict[str, dict[str, str]]) -> None:
    for name in ("sorted", "unsorted", "single"):
        print(f"{name:>9}: {row[f'{name}_rows_per_second']:.2f} rows/s")
    print(f"sorted over unsorted {row['sorted_over_unsorted']:.2f}, over single {row['sorted_over_single']:.2f}")
    for name in ("sorted", "unsorted"):
        print(f"{name}: {100 * row[f'{name}_identical']:.1f}% of {row['rows']} answers equal those of single prompts")
        for key, text in answers["single"].items():
            if answers[name][key] != text:
                print(f"  {key}: {text[:SHOWN_CHARACTERS]!r} alone, {answers[name][key][:SHOWN_CHARACTERS]!r} {name}")


if __name__ == "__main__":
    main()
