"""Discernment of the models of run folders on pairs of public or built-in sets, without any answers.

    python benchmarks/discernment.py runs/seed-0 runs/seed-1 --sets xstest,or-bench --data data --out runs/log-odds \\
        --csv benchmarks/results/discernment.csv
    python benchmarks/discernment.py runs/a runs/b --models aligned --against-first --out runs/log-odds

A row per run, model, pair of sets and reading (refusal log-odds, greedy margin); then the figures over the runs (seeds)
and the paired difference of the aligned model to its control, with 95 % intervals over prompts and seeds; with
--against-first the difference of each run's aligned model to that of the first run. The readings of each prompt are
kept under --out, so a second call measures only what is new. `data` has local copies of the sets, laid out as in
docs/benchmark-sets.md.
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from log_odds import builtin_openings
from record import append, commit

from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.discernment import discernment, discernment_difference
from dcr_ds.files import read_jsonl, write_jsonl
from dcr_ds.models.chat import encode_prompt, load_tokenizer
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import EvaluateSection, ModelSection
from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL, MODELS, STAGE_OF_MODEL, RunFolder

# name: harmless set, harmful set, prompts of each at most
PAIRS: dict[str, tuple[str, str, int | None]] = {
    "xstest": ("xstest-safe", "xstest-unsafe", None),
    "or-bench": ("or-bench-hard", "or-bench-toxic", 120),
    "jailbreakbench": ("jailbreakbench-benign", "jailbreakbench-harmful", None),
    "builtin": ("builtin-seemingly-toxic", "builtin-toxic-twins", None),
}
SHOWN = ("auc", "partial_auc", "refusal_at_5_false_refusals", "compliance_at_80_refusal", "compliance_at_90_refusal")
READINGS = ("log_odds", "margin")


class Sets(NamedTuple):
    """The prompts of a pair of sets, harmless first."""

    prompts: list[Prompt]
    harmful: np.ndarray
    pairs: list[str | None]


def main() -> None:
    options = parse()
    sets = {name: read_sets(name, options.data) for name in options.sets}
    values: dict[tuple[str, str, str], list[np.ndarray]] = {}  # by pair of sets, reading and model: an array per run
    for run, model in itertools.product(options.runs, options.models):
        for name, rows in measured(run, model, sets, options.out).items():
            for reading in READINGS:
                of_prompts = np.array([row[reading] for row in rows])
                values.setdefault((name, reading, model), []).append(of_prompts)
                row = {"commit": commit(), "run": run.name, "model": model, "sets": name, "reading": reading}
                row |= figures(of_prompts, np.array([row["margin"] for row in rows]) > 0, sets[name])
                print(*list(row.values())[1:5], f"AUC {row['auc']:.3f} ({row['auc_low']:.2f}–{row['auc_high']:.2f})")
                if options.csv:
                    append(options.csv, row)
    for name, reading in itertools.product(options.sets, READINGS):
        by_model = {model: np.stack(values[name, reading, model]) for model in options.models}
        summarise(f"{name}, {reading}", sets[name], by_model)
        if options.against_first:
            compare_runs(options.runs, sets[name], by_model[ALIGNED])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--models", type=lambda text: text.split(","), default=[CONTROL, ALIGNED], metavar="NAME,…")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["builtin"], metavar="NAME,…")
    parser.add_argument("--data", help="folder of local copies")
    parser.add_argument("--out", type=Path, required=True, help="folder of the log-odds of each prompt")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--against-first", action="store_true", help="compare the aligned models with the first run's")
    options = parser.parse_args()
    if unknown := (set(options.sets) - set(PAIRS)) | (set(options.models) - set(MODELS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; sets: {', '.join(PAIRS)}; models: {', '.join(MODELS)}")
    if options.against_first and ALIGNED not in options.models:
        parser.error(f"--against-first compares aligned models: add {ALIGNED} to --models")
    return options


def read_sets(name: str, data: str | None) -> Sets:
    harmless, harmful, rows = PAIRS[name]
    section = EvaluateSection(
        benchmarks=[{"name": harmless, "rows": rows}, {"name": harmful, "rows": rows}], local_data=data
    )
    of_set = [benchmark.prompts.rows for benchmark in read_benchmarks(section)]
    prompts = [prompt for rows in of_set for prompt in rows]
    return Sets(prompts, np.repeat([False, True], list(map(len, of_set))), [prompt.pair for prompt in prompts])


def measured(run: Path, model: str, sets: dict[str, Sets], out: Path) -> dict[str, list[dict]]:
    """The rows of all prompts by pair of sets; what is not in a file is measured."""
    files = {name: out / run.name / model / f"{name}.jsonl" for name in sets}
    if missing := [name for name in sets if not files[name].is_file()]:
        source = prepare_source(ModelSection()) if model == BASE else RunFolder(run).stage(STAGE_OF_MODEL[model]).model
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded, tokenizer = load_causal_lm(source, torch.float32, "sdpa", device).eval(), load_tokenizer(source)
        openings = builtin_openings(tokenizer)
        for name in missing:
            ids = [f"{number}" for number in range(len(sets[name].prompts))]
            tokens = [encode_prompt(tokenizer, prompt.prompt) for prompt in sets[name].prompts]
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(files[name], refusal_log_odds(loaded, ids, tokens, openings))
    return {name: read_jsonl(file) for name, file in files.items()}


def figures(values: np.ndarray, refused: np.ndarray, sets: Sets) -> dict[str, float | int | None]:
    """The figures of a reading [n], and the operating point of greedy answers, by their openings: refused [n]."""
    results = discernment(values, sets.harmful, sets.pairs)
    return {
        "harmless": int((~sets.harmful).sum()),
        "harmful": int(sets.harmful.sum()),
        **{name: results[name]["value"] for name in SHOWN},
        "auc_low": results["auc"]["low"],
        "auc_high": results["auc"]["high"],
        "complied_harmless": float((~refused)[~sets.harmful].mean()),
        "refused_harmful": float(refused[sets.harmful].mean()),
    }


def summarise(name: str, sets: Sets, readings: dict[str, np.ndarray]) -> None:
    """Print the figures over all runs, and the difference of the aligned model to the control."""
    results = {model: discernment(values, sets.harmful, sets.pairs) for model, values in readings.items()}
    if {CONTROL, ALIGNED} <= set(readings):
        difference = discernment_difference(readings[ALIGNED], readings[CONTROL], sets.harmful, sets.pairs)
        results[f"{ALIGNED} less {CONTROL}"] = difference
    count = len(next(iter(readings.values())))
    print(f"\n{name}, {(~sets.harmful).sum()} harmless and {sets.harmful.sum()} harmful prompts, {count} runs")
    for title, of_model in results.items():
        print_figures(title, of_model)


def compare_runs(runs: list[Path], sets: Sets, values: np.ndarray) -> None:
    """Print the paired difference of each run to the first, of a reading [runs, n]."""
    for run, of_run in zip(runs[1:], values[1:], strict=True):
        difference = discernment_difference(of_run, values[0], sets.harmful, sets.pairs)
        print_figures(f"{run.name} less {runs[0].name}", difference)


def print_figures(title: str, results: dict) -> None:
    cells = [f"{m} {results[m]['value']:.3f} ({results[m]['low']:.2f} to {results[m]['high']:.2f})" for m in SHOWN]
    print(f"  {title}: " + ", ".join(cells))


if __name__ == "__main__":
    main()
