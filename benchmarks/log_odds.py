"""Share of the refusal log-odds in the time to answer prompts greedily and to compute their log-odds.

    python benchmarks/log_odds.py --csv benchmarks/results/log_odds.csv
    python benchmarks/log_odds.py MODEL --max-new-tokens 256 --batch-size 64
    python benchmarks/log_odds.py MODEL --nodes                              which inner nodes matter, without timing
    python benchmarks/log_odds.py --tiny                                     a smoke test

The prompts are the built-in pairs held out from training; the openings are derived from the built-in refusals, general
answers and published phrases. The log-odds are computed twice: from the key-value cache that each batch of answers
leaves, as in an evaluation (`share`), and from the prompts alone, as during training (`ratio` to the time of
generation). All take turns for `--rounds` rounds; the fastest round counts. On a CPU the time is CPU time of the
process. Generation ignores the end-of-turn token, so that every answer has the same number of tokens whatever the
model.
"""

import argparse
import json
import math
from collections.abc import Callable
from importlib import resources

import torch
from measuring import seconds_now
from named_model import columns_of, load_model, model_parser
from record import append
from transformers import Cache, GenerationConfig

from dcr_ds.diagnose.log_odds import first_token_impurity, log_odds_after_answers, refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.diagnose.readings import Reader
from dcr_ds.diagnose.tree_pass import TreePass
from dcr_ds.judges.strings import PRESETS
from dcr_ds.models.chat import encode_prompt


def main() -> None:
    options = parse()
    model, tokenizer = load_model(options)
    openings = builtin_openings(tokenizer)
    prompts = [encode_prompt(tokenizer, text) for text in held_out_twins()[: options.rows]]
    if options.nodes:
        print(json.dumps(nodes_that_matter(model, prompts, openings, options.batch_size), indent=2))
        return
    ids = [str(number) for number in range(len(prompts))]
    rows: list[dict] = []

    def read_prompts() -> None:
        rows[:] = refusal_log_odds(model, ids, prompts, openings, options.batch_size)

    def answer() -> float:
        return answer_and_read(model, prompts, openings, options)

    seconds = fastest(read_prompts, answer, options.rounds, options.device)
    row = columns_of(options) | {
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "openings": len(openings.openings),
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "log_odds_seconds": seconds["prompts"],
        "generation_seconds": seconds["generation"],
        "ratio": seconds["prompts"] / seconds["generation"],
        "first_token_impurity": first_token_impurity(rows),
        "after_answers_seconds": seconds["after_answers"],
        "share": seconds["after_answers"] / (seconds["after_answers"] + seconds["generation"]),
    }
    print(json.dumps(row, indent=2))
    if options.csv:
        append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = model_parser(__doc__, max_new_tokens=40)
    parser.add_argument("--rows", type=int, help="maximum number of prompts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--nodes", action="store_true", help="count the inner nodes by their probability")
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


@torch.no_grad()
def nodes_that_matter(model, prompts: list[list[int]], openings: Openings, batch_size: int) -> dict[str, float]:
    """Mean number of inner nodes whose probability is above a share of that of a refusal, or of none if lower."""
    tree = Tree.of([opening.tokens for opening in openings.openings])
    reader, run = Reader(model.eval(), tree), TreePass(model.get_decoder(), tree, prompts)
    counts = dict.fromkeys((1e-6, 1e-4, 1e-2), 0)
    for start in range(0, len(prompts), batch_size):
        log_p, _, _ = reader.split(run(prompts[start : start + batch_size]))  # of children [B, N, C]
        reached = {(): torch.zeros(len(log_p), dtype=torch.float64, device=log_p.device)}
        for tokens in (*tree.nodes[1:], *tree.openings):
            parent = reader.number[tokens[:-1]]
            reached[tokens] = reached[tokens[:-1]] + log_p[:, parent, reader.children[parent].index(tokens[-1])]
        refusal = torch.stack([reached[tokens] for tokens in tree.openings]).logsumexp(0)
        lower = torch.minimum(refusal, (-refusal.exp()).log1p())
        nodes = torch.stack([reached[node] for node in tree.nodes])
        for share in counts:
            counts[share] += int((nodes > lower + math.log(share)).sum())
    return {"nodes": len(tree.nodes)} | {f"above {share:g}": count / len(prompts) for share, count in counts.items()}


def answer_and_read(model, prompts: list[list[int]], openings: Openings, options: argparse.Namespace) -> float:
    """Answer in batches of similar length, as an evaluation does, and read log-odds; returns the seconds of these."""
    ordered = sorted(prompts, key=len, reverse=True)
    spent = 0.0
    for start in range(0, len(ordered), options.batch_size):
        batch = ordered[start : start + options.batch_size]
        cache = generate(model, batch, options.max_new_tokens)
        started = seconds_now(options.device)
        names = [str(number) for number in range(len(batch))]
        if log_odds_after_answers(model, names, batch, openings, cache, check=start == 0) is None:
            raise SystemExit("the cache of this model's answers cannot be used for log-odds")
        spent += seconds_now(options.device) - started
    return spent


@torch.inference_mode()
def generate(model, batch: list[list[int]], max_new_tokens: int) -> Cache:
    """The cache of greedy answers to left-padded prompts, longest first."""
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, pad_token_id=0
    )
    width = len(batch[0])
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
    output = model.generate(input_ids=tokens, attention_mask=mask, return_dict_in_generate=True)
    return output.cache if hasattr(output, "cache") else output.past_key_values  # transformers 5 renames the field


def fastest(
    read_prompts: Callable[[], None], answer: Callable[[], float], rounds: int, device: str
) -> dict[str, float]:
    """Seconds of the fastest round of each part; on a GPU an extra first round is a warm-up.

    `answer` returns how many of its seconds were spent on log-odds.
    """
    warmups = int(device == "cuda")
    best = dict.fromkeys(("prompts", "generation", "after_answers"), float("inf"))
    for number in range(rounds + warmups):
        start = seconds_now(device)
        read_prompts()
        middle = seconds_now(device)
        spent = answer()
        answered = seconds_now(device) - middle
        seconds = {"prompts": middle - start, "generation": answered - spent, "after_answers": spent}
        if number >= warmups:
            best = {part: min(best[part], seconds[part]) for part in best}
    return best


if __name__ == "__main__":
    main()
