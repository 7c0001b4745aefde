"""Class collapse: stage 1 pulls every prompt of a class towards every other, whatever its topic. Do these help?

    python benchmarks/class_collapse.py --data public --csv benchmarks/results/class_collapse.csv
    python benchmarks/class_collapse.py --data public --only retain-prompts
    python benchmarks/class_collapse.py --data public --measure runs/refine-settings/defaults

Variants, each the run `defaults` of refine_settings.py (12 steps, the same data order) with one change:

- retain-prompts: the retain term also has the tokens of the training prompts, except the pooled one.
- retain-answers: the retain term also has the base model's greedy answers to the seemingly toxic training prompts, at
  all tokens of prompt and answer.
- half-topics, half-pairs: half of the training pairs, from the first categories alone, or from all categories.

Both retain variants have more rows per step and a retain weight of 60, so that general conversations have at least
their weight in `defaults`. A row has the figures of refine_settings.py and, on the held-out built-in twins: the share
of prompts whose nearest prompt of the other class is their twin (chance: 1 of 63), which falls when topics are lost,
and the AUC of the class means on categories that stage 1 trains on and on others. The protocol and the decision rule
are in docs/benchmarks-settings.md. Models are kept under --out, so a second call continues.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from record import append, commit
from refine_settings import Refined, add_options, figures_of, read_refined, recipe_of

from dcr_ds.data.benchmarks import Benchmark
from dcr_ds.data.load import RunData, load_data
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import PromptSet, digest
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.launcher import set_environment
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.evaluate.generate import Decoding, generate_missing, prepare_generations
from dcr_ds.files import read_jsonl
from dcr_ds.models.chat import encode_conversation
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.locate import prepare_source
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import DataSource
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.refine.loop import refine
from dcr_ds.refine.prompts import RefinePrompts, encode_refine_prompts
from dcr_ds.refine.separation import class_mean_auc
from dcr_ds.run.opening import open_run

ANSWER_TOKENS = 40
FIELDS: dict[str, dict[str, object]] = {
    "retain-prompts": {"retain_batch": 12, "retain_weight": 60},
    "retain-answers": {"retain_batch": 8, "retain_weight": 60},
    "half-topics": {},
    "half-pairs": {},
}


def main() -> None:
    options = parse()
    set_environment()
    for name in [] if options.measure else options.only or FIELDS:
        if not RunFolder(options.out / name).stage("refine").is_done:
            train(name, options)
        write(name, options.out / name, options)
    for run in options.measure:
        write(run.name, run, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, tuple(FIELDS))
    return parser.parse_args()


def train(name: str, options: argparse.Namespace) -> None:
    """Run stage 1 of a variant, which differs from the run of a recipe in its rows only."""
    recipe = recipe_of(name, FIELDS[name], options)
    source, data = prepare_source(recipe.model), load_data(recipe)
    if name in HALVES:
        keep_pairs(data, HALVES[name])
    with open_run([], recipe.watchdog.hang_minutes) as ranks:
        recipe, _ = resolve(recipe, model_config(source), Machine.detect(ranks))
        tokenizer = load_tokenizer(source)
        prompts = encode_refine_prompts(recipe, data, tokenizer)
        if name == "retain-prompts":
            trained = {row.id for rows in prompts.sampler.rows for row in rows}
            prompts.general += [ids[:-1] for (_, key), ids in prompts.tokens.items() if key in trained]
        elif name == "retain-answers":
            conversations = answers(prompts, source, options.out / "answers.jsonl", ranks)
            prompts.general += [encode_conversation(tokenizer, messages).ids for messages in conversations]
        refine(recipe, source, prompts, RunFolder(recipe.folder).stage("refine"), ranks)


def keep_pairs(data: RunData, chosen: Callable[[list[str], dict[str, str]], set[str]]) -> None:
    """Keep the rows of chosen pairs in both sets of stage 1."""
    assert data.seemingly_toxic is not None and data.toxic is not None
    categories = {str(row.pair): str(row.category) for row in data.seemingly_toxic.rows}
    kept = chosen(sorted(categories), categories)
    for of_class in (data.seemingly_toxic, data.toxic):
        of_class.rows[:] = [row for row in of_class.rows if row.pair in kept]
    print(f"{len(kept)} of {len(categories)} pairs, categories: {', '.join(sorted({categories[key] for key in kept}))}")


def first_topics(pairs: list[str], categories: dict[str, str]) -> set[str]:
    """The pairs of the first categories by name that make up half of all pairs."""
    return set(sorted(pairs, key=lambda pair: categories[pair])[: len(pairs) // 2])


def every_second(pairs: list[str], categories: dict[str, str]) -> set[str]:
    """Half of all pairs, from each category every second one."""
    return set(sorted(pairs, key=lambda pair: categories[pair])[1::2])


HALVES = {"half-topics": first_topics, "half-pairs": every_second}


def answers(prompts: RefinePrompts, source: Path, file: Path, ranks: Ranks) -> list[list[dict[str, str]]]:
    """The base model's answers to the seemingly toxic training prompts, as conversations."""
    rows = prompts.sampler.rows[0]
    benchmark = Benchmark("answers", "comply", PromptSet("answers", "builtin", rows, digest(rows)))
    tokenizer = load_tokenizer(source)
    generations = prepare_generations(benchmark, file, tokenizer, Decoding(ANSWER_TOKENS, 16), {})
    file.parent.mkdir(parents=True, exist_ok=True)
    if not generations.is_complete:
        model = load_causal_lm(source, torch.float32, "sdpa", ranks.device).eval()
        generate_missing(generations, model, tokenizer, ranks)
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in read_jsonl(file)
    ]


def write(name: str, run: Path, options: argparse.Namespace) -> None:
    refined = read_refined(run, options.data)
    row = {"commit": commit(), "variant": name, **figures_of(refined), **topics(refined)}
    print(row)
    if options.csv:
        append(options.csv, row)


def topics(refined: Refined) -> dict[str, float]:
    """What is left of the topics of held-out twins, and the AUC on categories that stage 1 trains on and on others."""
    sets, hidden = refined.sets["builtin"], refined.hidden["builtin"]
    labels, pairs = refined.labels_and_pairs("builtin")
    trained = {row.category for row in read_prompts(DataSource(), "toxic").rows}
    known = torch.tensor([prompt.category in trained for prompt in sets.prompts])
    row = {"twins_nearest": nearest_twins(hidden, labels, pairs)}
    for name, chosen in (("trained", known), ("new", ~known)):
        row[f"auc_{name}_categories"] = class_mean_auc(hidden[chosen], labels[chosen], pairs[chosen])
    return row


def nearest_twins(hidden: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> float:
    """Share of prompts whose nearest prompt of the other class, by cosine around the class means, is their twin.

    Args:
        hidden: [n, D]. labels, pairs: [n]; every pair has one prompt of each class.
    """
    first, second = (
        torch.nn.functional.normalize(of_class - of_class.mean(0), dim=-1)
        for of_class in (hidden[labels == label][pairs[labels == label].argsort()] for label in (0, 1))
    )
    similarity = first @ second.T
    twins = torch.arange(len(similarity))
    hits = torch.cat([similarity.argmax(dim) == twins for dim in (0, 1)])
    return hits.float().mean().item()


if __name__ == "__main__":
    main()
