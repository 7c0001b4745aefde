"""Seconds of the refusal log-odds of prompts against those of answering them greedily.

    python benchmarks/log_odds.py --csv benchmarks/results/log_odds.csv
    python benchmarks/log_odds.py MODEL --max-new-tokens 256 --batch-size 64
    python benchmarks/log_odds.py --tiny                                     a smoke test

Prompts are the built-in twins that are held out from training, openings those of the built-in refusals, general answers
and the published phrases. Both arms use the same prompts and batch size, and take turns, `--rounds` times; the fastest
round of each counts. On a CPU the time is CPU seconds of the process. Every answer gets all its tokens: an end of turn
does not stop it, so that the work does not depend on the model.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from record import ROOT, append, cpu_name, provenance
from transformers import GenerationConfig

from dcr_ds.diagnose.log_odds import first_token_impurity, refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.judges.strings import PRESETS
from dcr_ds.models.chat import encode_prompt, load_tokenizer
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import ModelSection


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        source = tiny_model(Path(scratch)) if options.tiny else prepare_source(ModelSection(source=options.model))
        model = load_causal_lm(
            source, torch.bfloat16 if device.type == "cuda" else torch.float32, "sdpa", device
        ).eval()
        tokenizer = load_tokenizer(source)
    openings = builtin_openings(tokenizer)
    prompts = [encode_prompt(tokenizer, text) for text in held_out_twins()[: options.rows]]
    ids = [str(number) for number in range(len(prompts))]
    rows: list[dict] = []

    def read() -> None:
        rows[:] = refusal_log_odds(model, ids, prompts, openings, options.batch_size)

    def answer() -> None:
        generate(model, prompts, options)

    seconds = fastest({"log_odds": read, "generation": answer}, options.rounds, device)
    row = provenance("torch", "transformers") | {
        "model": "tiny" if options.tiny else options.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "clock": "wall" if device.type == "cuda" else "cpu",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and a few rows")
    parser.add_argument("--rows", type=int, help="at most this many prompts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.max_new_tokens, options.batch_size = 6, 4, 4
    return options


def tiny_model(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model

    return make_model(folder)


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


def fastest(arms: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest round of each arm; on a GPU after a round that is not timed."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    best = dict.fromkeys(arms, float("inf"))
    for number in range(rounds + on_gpu):
        for name, action in arms.items():
            started = clock()
            action()
            if on_gpu:
                torch.cuda.synchronize()
            if number >= on_gpu:
                best[name] = min(best[name], clock() - started)
    return best


if __name__ == "__main__":
    main()
