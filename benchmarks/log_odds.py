"""Time to compute the refusal log-odds of prompts, compared with the time to answer them greedily.

    python benchmarks/log_odds.py --csv benchmarks/results/log_odds.csv
    python benchmarks/log_odds.py MODEL --max-new-tokens 256 --batch-size 64
    python benchmarks/log_odds.py --tiny                                     a smoke test

The prompts are the built-in pairs held out from training; the openings are derived from the built-in refusals, general
answers and published phrases. Both arms use the same prompts and batch size and take turns for `--rounds` rounds; the
fastest round of each arm counts. On a CPU the time is CPU time of the process. Generation ignores the end-of-turn
token, so that every answer has the same number of tokens whatever the model.
"""

import argparse
import json
from collections.abc import Callable
from importlib import resources

import torch
from measuring import seconds_now
from named_model import columns_of, load_model, model_parser
from record import append
from transformers import GenerationConfig

from dcr_ds.diagnose.log_odds import first_token_impurity, refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.judges.strings import PRESETS
from dcr_ds.models.chat import encode_prompt


def main() -> None:
    options = parse()
    model, tokenizer = load_model(options)
    openings = builtin_openings(tokenizer)
    prompts = [encode_prompt(tokenizer, text) for text in held_out_twins()[: options.rows]]
    ids = [str(number) for number in range(len(prompts))]
    rows: list[dict] = []

    def read() -> None:
        rows[:] = refusal_log_odds(model, ids, prompts, openings, options.batch_size)

    def answer() -> None:
        generate(model, prompts, options)

    seconds = fastest({"log_odds": read, "generation": answer}, options.rounds, options.device)
    row = columns_of(options) | {
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "openings": len(openings.openings),
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "log_odds_seconds": seconds["log_odds"],
        "generation_seconds": seconds["generation"],
        "ratio": seconds["log_odds"] / seconds["generation"],
        "first_token_impurity": first_token_impurity(rows),
    }
    print(json.dumps(row, indent=2))
    if options.csv:
        append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = model_parser(__doc__, max_new_tokens=40)
    parser.add_argument("--rows", type=int, help="maximum number of prompts")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.max_new_tokens, options.batch_size = 6, 4, 4
    return options


def builtin(name: str) -> list[dict]:
    text = (resources.files("dcr_ds.data") / "builtin" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def held_out_twins() -> list[str]:
    pairs = [row for row in builtin("pairs") if row["split"] != "train"]
    return [row[kind] for row in pairs for kind in ("seemingly_toxic", "toxic")]


def builtin_openings(tokenizer) -> Openings:
    refusals, ordinary = (
        [row["response"] for row in builtin(name) if row["split"] == "train"] for name in ("refusals", "general")
    )
    folder = resources.files("dcr_ds.judges") / "presets"
    presets = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in PRESETS]
    phrases = [phrase for preset in presets for phrase in (*preset["phrases"], *preset.get("phrases_unless", {}))]
    return find_openings(tokenizer, refusals, ordinary, phrases)


@torch.inference_mode()
def generate(model, prompts: list[list[int]], options: argparse.Namespace) -> None:
    """Answer greedily in batches of similar length, as an evaluation does."""
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=options.max_new_tokens, min_new_tokens=options.max_new_tokens, pad_token_id=0
    )
    ordered = sorted(prompts, key=len, reverse=True)
    for start in range(0, len(ordered), options.batch_size):
        batch = ordered[start : start + options.batch_size]
        width = len(batch[0])
        tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        model.generate(input_ids=tokens, attention_mask=mask)


def fastest(arms: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of the fastest round of each arm; on a GPU an extra first round is a warm-up."""
    warmups = int(device == "cuda")
    best = dict.fromkeys(arms, float("inf"))
    for number in range(rounds + warmups):
        for name, action in arms.items():
            started = seconds_now(device)
            action()
            if number >= warmups:
                best[name] = min(best[name], seconds_now(device) - started)
    return best


if __name__ == "__main__":
    main()
