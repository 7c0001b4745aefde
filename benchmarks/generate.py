"""Rows per second of the evaluation's generation, against unsorted batches and against one prompt at a time.

    python benchmarks/generate.py --rows 64 --csv benchmarks/results/generate.csv
    python benchmarks/generate.py MODEL --benchmarks xstest-safe,or-bench-hard --local-data DIR
    python benchmarks/generate.py --mixed --rows 48 --csv …                  short and long prompts in turn
    python benchmarks/generate.py --tiny                                     a smoke test

sorted: batches of like length, longest first, as `evaluate.generate` makes them; unsorted: the same prompts in the
order of their files, in batches of the same size; single: one prompt at a time. All three use `generate_batch`,
greedily and left-padded. They take turns, a batch's worth of prompts each, so that a drift of the machine meets all; on
a CPU the time is CPU seconds of the process. Padding changes the last bits of logits, so that an answer may tip over at
a near tie: answers are compared with those of single prompts, and the rows that differ are listed.

--mixed: questions of the built-in general set, every second one with an excerpt of other answers of the set before it,
up to LONGEST_EXCERPT characters of them, as prompts with and without a document are in one file.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from record import ROOT, append, cpu_name, provenance

from dcr_ds.data.benchmarks import Benchmark, read_benchmarks
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.records import Prompt, PromptSet, digest
from dcr_ds.evaluate.generate import Decoding, generate_batch, make_batches, prepare_generations
from dcr_ds.evaluate.generations import Generations
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import DataSource, EvaluateSection, ModelSection

SHOWN_CHARACTERS = 60
LONGEST_EXCERPT = 1600  # characters, some 350 tokens


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        source = tiny_model(Path(scratch)) if options.tiny else prepare_source(ModelSection(source=options.model))
        model = load_causal_lm(source, torch.bfloat16 if device.type == "cuda" else torch.float32, "sdpa", device)
        tokenizer = load_tokenizer(source)
    prompts = mixed_prompts(options.rows) if options.mixed else read_prompts(options)
    benchmark = Benchmark("generate", "comply", PromptSet("generate", options.benchmarks, prompts, digest(prompts)))
    decoding = Decoding(options.max_new_tokens, options.batch_size)
    generations = prepare_generations(benchmark, Path(), tokenizer, decoding, {})
    answers, seconds = measure(generations, lambda batch: generate_batch(generations, batch, model, tokenizer), device)
    row = provenance("torch", "transformers") | {
        "model": "tiny" if options.tiny else options.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "clock": "wall" if device.type == "cuda" else "cpu",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and a few rows")
    parser.add_argument("--benchmarks", default="builtin", help="names, separated by commas")
    parser.add_argument("--local-data")
    parser.add_argument("--mixed", action="store_true", help="short and long prompts, in place of --benchmarks")
    parser.add_argument("--rows", type=int, help="at most so many of each benchmark")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.max_new_tokens, options.batch_size = 6, 6, 4
    return options


def tiny_model(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model

    return make_model(folder)


def read_prompts(options: argparse.Namespace) -> list[Prompt]:
    names = [{"name": name, "rows": options.rows} for name in options.benchmarks.split(",")]
    found = read_benchmarks(EvaluateSection(benchmarks=names, local_data=options.local_data))
    return [Prompt(f"{benchmark.name}/{row.id}", row.prompt) for benchmark in found for row in benchmark.prompts.rows]


def mixed_prompts(rows: int | None) -> list[Prompt]:
    """Questions, every second one after an excerpt; the excerpts are of all lengths up to the longest, shuffled."""
    conversations = read_conversations(DataSource(source="builtin"), "general").rows[: rows or None]
    questions = [one.messages[-2]["content"] for one in conversations]
    answers = " ".join(one.messages[-1]["content"] for one in conversations)
    lengths = [LONGEST_EXCERPT * (i + 1) // len(questions) for i in range(len(questions))]
    random.Random(0).shuffle(lengths)
    return [
        Prompt(f"mixed/{i}", f"{answers[i * 50 :][:length]}\n\n{question}" if i % 2 else question)
        for i, (question, length) in enumerate(zip(questions, lengths, strict=True))
    ]


def measure(
    generations: Generations, answer: Callable[[Sequence[int]], list[dict]], device: torch.device
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Completions by id and seconds, each by arrangement."""
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
                spent, rows = timed(lambda batch=batch: answer(batch), device)
                seconds[name] += spent
                answers[name] |= {row["id"]: row["completion"] for row in rows}
    return answers, seconds


def timed(action: Callable[[], list[dict]], device: torch.device) -> tuple[float, list[dict]]:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    rows = action()  # its tokens are on the host at the end, so nothing is under way
    return clock() - started, rows


def share_identical(answers: dict[str, str], reference: dict[str, str]) -> float:
    return sum(answers[name] == text for name, text in reference.items()) / len(reference)


def print_row(row: dict, answers: dict[str, dict[str, str]]) -> None:
    for name in ("sorted", "unsorted", "single"):
        print(f"{name:>9}: {row[f'{name}_rows_per_second']:.2f} rows/s")
    print(f"sorted over unsorted {row['sorted_over_unsorted']:.2f}, over single {row['sorted_over_single']:.2f}")
    for name in ("sorted", "unsorted"):
        print(f"{name}: {100 * row[f'{name}_identical']:.1f}% of {row['rows']} answers as one at a time")
        for key, text in answers["single"].items():
            if answers[name][key] != text:
                print(f"  {key}: {text[:SHOWN_CHARACTERS]!r} alone, {answers[name][key][:SHOWN_CHARACTERS]!r} {name}")


if __name__ == "__main__":
    main()
