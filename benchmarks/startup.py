"""CPU seconds of one rank from its data to its first step, without loading the model, for several numbers of ranks.

    python benchmarks/startup.py --csv benchmarks/results/startup.csv
    python benchmarks/startup.py --tiny                                    a smoke test

Ranks are simulated: one process does what any rank does, for its rank number and the number of ranks. Communication,
loading of the model and building of the engine are not in it. Every rank reads and encodes all data, so `read` and
`encode` are measured once; they do not depend on the number of ranks. Rows per rank are the same for all numbers of
ranks, 8 prompts or conversations and 2 rows of the retain term, so that the batch grows with the ranks.

read     the data sets, with the search for overlaps
encode   the tokens of refine and align with the model's chat template, and their hashes
anchors  the forward passes over all rows whose original activations are kept (refine)
steps    the forward passes of the first step of refine, its retain term, and the first step of align
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from named_model import tiny_model
from record import append, cpu_name, number, option_parser, provenance

from dcr_ds.align.state import AlignState
from dcr_ds.data.load import load_data
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import ModelSection, Recipe
from dcr_ds.refine.state import RefineState
from dcr_ds.run.tokens import RunTokens

PARTS = ("read", "encode", "anchors", "steps")
WORDS = 3000  # different words of the synthetic texts


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = tiny_model(folder / "model") if options.tiny else prepare_source(ModelSection(source="smollm2-135m"))
        write_data(folder, 200 if options.tiny else options.conversations)
        tokens, read, encode = prepare(recipe_of(folder, source, 1, options), source)
        rows = []
        for ranks in options.ranks:
            anchors, steps = plan(recipe_of(folder, source, ranks, options), tokens, ranks)
            rows.append(dict(zip(PARTS, (read, encode, anchors, steps), strict=True)))
    for ranks, row in zip(options.ranks, rows, strict=True):
        total, first = sum(row.values()), sum(rows[0].values())
        shown = ", ".join(f"{part} {number(seconds)} s" for part, seconds in row.items())
        print(f"{ranks} ranks: {shown}; together {number(total)} s, {total / first:.2f} × that of {options.ranks[0]}")
        if options.csv:
            append(options.csv, columns(options, ranks) | row | {"total": total, "over_first": total / first})


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[1, 64, 1024])
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--padded", action="store_true", help="padded micro-batches instead of packed rows")
    return parser.parse_args()


def columns(options: argparse.Namespace, ranks: int) -> dict[str, Any]:
    return provenance("torch", "transformers") | {
        "device": cpu_name(),
        "batching": "padded" if options.padded else "packed",
        "conversations": options.conversations,
        "ranks": ranks,
    }


def write_data(folder: Path, conversations: int) -> None:
    """Four data sets of random words; a conversation has about 140 of them."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlucm", k=chance.randint(2, 8))) for _ in range(WORDS)]

    def text(fewest: int, most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(fewest, most)))

    sets = {
        "seemingly_toxic": [{"prompt": text(8, 30)} for _ in range(250)],
        "toxic": [{"prompt": text(8, 30)} for _ in range(500)],
        "general": [{"prompt": text(10, 30), "response": text(40, 200)} for _ in range(conversations)],
        "refusals": [{"prompt": text(8, 30), "response": text(20, 60)} for _ in range(1000)],
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_of(folder: Path, source: Path, ranks: int, options: argparse.Namespace) -> Recipe:
    stage = {"micro_batch": 8, "packed_length": 2048, "packing": not options.padded, "max_length": 512}
    return Recipe.model_validate(
        {
            "model": {"source": str(source)},
            "stages": ["refine", "align"],
            "data": {
                name: {"source": str(folder / f"{name}.jsonl")}
                for name in ("seemingly_toxic", "toxic", "general", "refusals")
            },
            "refine": stage | {"layer": 1, "global_batch": 8 * ranks, "retain_batch": 2 * ranks, "pairs": "mixed"},
            "align": stage | {"global_batch": 8 * ranks},
        }
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a function and the CPU seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def prepare(recipe: Recipe, source: Path) -> tuple[RunTokens, float, float]:
    data, read = timed(lambda: load_data(recipe))
    tokens = RunTokens(recipe, source, data)
    _ = tokens.tokenizer  # loading it is not measured
    _, encode = timed(lambda: tokens.describe(["refine", "align"]))
    return tokens, read, encode


def plan(recipe: Recipe, tokens: RunTokens, world_size: int) -> tuple[float, float]:
    """Seconds for the passes of the anchors, and for those of the first steps, on the last rank."""
    ranks = Ranks(world_size - 1, world_size, 0, torch.device("cpu"))
    refine = RefineState(None, recipe, tokens.prompts, Batching.of(recipe.refine), ranks, None)  # type: ignore[arg-type]
    _, anchors = timed(refine.anchor_passes)
    return anchors, timed(lambda: first_steps(refine, tokens))[1]


def first_steps(refine: RefineState, tokens: RunTokens) -> None:
    recipe, ranks = refine.recipe, refine.ranks
    batch = tokens.prompts.sampler.batch(0)
    lengths = [len(tokens.prompts.tokens[label, prompt.id]) for prompt, label in batch]
    forward_passes(range(len(batch)), lengths, ranks.rank, ranks.world_size, refine.batching)
    refine.retain_passes(0)

    class Objective:
        data = tokens.samples

    align = AlignState(None, recipe, Objective(), Batching.of(recipe.align), ranks, 1)  # type: ignore[arg-type]
    rows = align.rows(0)
    lengths = [tokens.samples.num_tokens(row) for row in rows]
    forward_passes(rows, lengths, ranks.rank, ranks.world_size, align.batching)


if __name__ == "__main__":
    main()
