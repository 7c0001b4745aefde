"""Discernment of the models of run folders on pairs of public or built-in sets.

    python benchmarks/discernment.py runs/seed-0 runs/seed-1 --sets xstest,or-bench --data public --out runs/log-odds \\
        --csv benchmarks/results/discernment.csv
    python benchmarks/discernment.py runs/a runs/b --models aligned --against-first --out runs/log-odds
    python benchmarks/discernment.py knob scans --models aligned --out runs/log-odds

A row per run, model, pair of sets and reading (refusal log-odds, greedy margin); the paired difference of the aligned
model to its control; then both over the runs (seeds), with 95 % intervals over prompts and seeds; with --against-first
the difference of each run's aligned model to that of the first run. The readings of each prompt are kept under --out,
so a second call measures only what is new. `data` has local copies of the sets, laid out as in docs/benchmark-sets.md.

No answers are needed. With --judged, the readings come from results of `dcr-ds evaluate`, and the rows also have the
figures of the judged answers and their agreement with the reading. A folder of a model or of a baseline takes the place
of a run with an aligned model. Prompts that a model was made from stop the measurement, unless --allow-leakage is set.
The results of model M of run R on a pair of sets
are in FOLDER/<sets>/<R>-<M>, for example:

    dcr-ds evaluate seed-0-control=runs/seed-0/control/model seed-0-aligned=runs/seed-0/align/model \\
        --benchmarks xstest-safe,xstest-unsafe --local-data public --max-new-tokens 40 --judge rules \\
        --out runs/judged/xstest
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from log_odds import builtin_openings
from record import append, commit

from dcr_ds.data.benchmarks import Benchmark, read_benchmarks
from dcr_ds.data.leakage import describe
from dcr_ds.data.load import RunData, check_leakage
from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.discernment import (
    agreement,
    discernment,
    discernment_difference,
    score_auc,
    score_auc_difference,
    youden_j,
    youden_j_difference,
)
from dcr_ds.errors import EXIT_USER_ERROR, UserError
from dcr_ds.evaluate.origins import made_from
from dcr_ds.evaluate.targets import LocalModel, locate_target
from dcr_ds.files import read_jsonl, write_jsonl
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.hooks.load import load_model
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import EndpointSection, EvaluateSection, ModelSection
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
JUDGED = ("agreement", "judged_j", "judge_auc")
JUDGE = "rules"
DIFFERENCE = f"{ALIGNED} less {CONTROL}"


class Sets(NamedTuple):
    """The prompts of a pair of sets, harmless first."""

    prompts: list[Prompt]
    harmful: np.ndarray
    pairs: list[str | None]


class Readings(NamedTuple):
    """What is known of each prompt, per seed [S, n]; labels and scores of a judge are None without judged answers."""

    log_odds: np.ndarray
    margin: np.ndarray
    labels: np.ndarray | None
    scores: np.ndarray | None


def main() -> None:
    options = parse()
    benchmarks = {name: read_pair(name, options.data, options.limit) for name in options.sets}
    for run, model in itertools.product(options.runs, options.models):
        refuse_leakage(run, model, list(itertools.chain(*benchmarks.values())), options.allow_leakage)
    sets = {name: joined(*pair) for name, pair in benchmarks.items()}
    runs: dict[tuple[str, str], list[Readings]] = {}  # by pair of sets and model: one per run
    for run, model in itertools.product(options.runs, options.models):
        if options.judged:
            by_set = {name: judged(options.judged / name / f"{run.name}-{model}", name, sets[name]) for name in sets}
        else:
            by_set = {name: of_rows(rows) for name, rows in measured(run, model, sets, options.out).items()}
        for name, readings in by_set.items():
            runs.setdefault((name, model), []).append(readings)
    rows = []
    for name in sets:
        by_run = [{model: runs[name, model][number] for model in options.models} for number in range(len(options.runs))]
        for run, by_model in zip(options.runs, by_run, strict=True):
            rows += rows_of(run.name, name, sets[name], by_model)
        if options.against_first:
            first = by_run[0][ALIGNED]
            for run, by_model in zip(options.runs[1:], by_run[1:], strict=True):
                key = (f"{run.name} less {options.runs[0].name}", ALIGNED, name)
                rows += differences(key, sets[name], by_model[ALIGNED], first)
        if len(by_run) > 1:
            rows += rows_of("all", name, sets[name], {model: over_runs(runs[name, model]) for model in options.models})
    for row in rows:
        show(row)
        if options.csv:
            append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--models", type=lambda text: text.split(","), default=[CONTROL, ALIGNED], metavar="NAME,…")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["builtin"], metavar="NAME,…")
    parser.add_argument("--data", help="folder of local copies")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--out", type=Path, help="folder of the log-odds of each prompt")
    source.add_argument("--judged", type=Path, metavar="FOLDER", help="folder of results of dcr-ds evaluate")
    parser.add_argument("--limit", type=int, help="prompts of each set at most, sampled with seed 0")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--allow-leakage", action="store_true", help="measure prompts that a model was made from, too")
    parser.add_argument("--against-first", action="store_true", help="compare the aligned models with the first run's")
    options = parser.parse_args()
    if unknown := (set(options.sets) - set(PAIRS)) | (set(options.models) - set(MODELS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; sets: {', '.join(PAIRS)}; models: {', '.join(MODELS)}")
    if options.against_first and ALIGNED not in options.models:
        parser.error(f"--against-first compares aligned models: add {ALIGNED} to --models")
    return options


def read_pair(name: str, data: str | None, limit: int | None) -> list[Benchmark]:
    """The harmless set of a pair, and the harmful one."""
    harmless, harmful, rows = PAIRS[name]
    rows = limit or rows
    section = EvaluateSection(
        benchmarks=[{"name": harmless, "rows": rows}, {"name": harmful, "rows": rows}], local_data=data
    )
    return read_benchmarks(section)


def joined(harmless: Benchmark, harmful: Benchmark) -> Sets:
    of_set = [harmless.prompts.rows, harmful.prompts.rows]
    prompts = [prompt for rows in of_set for prompt in rows]
    return Sets(prompts, np.repeat([False, True], list(map(len, of_set))), [prompt.pair for prompt in prompts])


def source_of(run: Path, model: str) -> str:
    """Where a model of a run is; the aligned one may be given itself in place of the run."""
    if model == BASE:
        return ModelSection().source
    folder = RunFolder(run).stage(STAGE_OF_MODEL[model]).model
    return str(run if model == ALIGNED and not folder.exists() else folder)


def refuse_leakage(run: Path, model: str, benchmarks: list[Benchmark], allow: bool) -> None:
    """Refuse to measure prompts that a model was made from, unless it is allowed; then they are printed.

    Raises:
        UserError: naming the first of them.
    """
    earlier = made_from(source_of(run, model))
    data = RunData(benchmarks=benchmarks, earlier=earlier.sets)
    check_leakage(data, allow)
    for note in [*earlier.notes, *([f"leakage: {describe(data.overlaps)}"] if data.overlaps else [])]:
        print(note)


def measured(run: Path, model: str, sets: dict[str, Sets], out: Path) -> dict[str, list[dict]]:
    """The rows of all prompts by pair of sets; what is not in a file is measured."""
    files = {name: out / run.name / model / f"{name}.jsonl" for name in sets}
    if missing := [name for name in sets if not files[name].is_file()]:
        local = locate_target(ModelSection(source=source_of(run, model)), EndpointSection())
        assert isinstance(local, LocalModel)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model(local.source, local.adapter, local.hook, torch.float32, "sdpa", device)
        tokenizer = load_tokenizer(local.tokenizer, None, local.source)
        openings = builtin_openings(tokenizer)
        for name in missing:
            ids = [f"{number}" for number in range(len(sets[name].prompts))]
            tokens = [encode_prompt(tokenizer, prompt.prompt) for prompt in sets[name].prompts]
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(files[name], refusal_log_odds(loaded, ids, tokens, openings))
    return {name: read_jsonl(file) for name, file in files.items()}


def of_rows(rows: list[dict]) -> Readings:
    return Readings(*(np.array([[row[reading] for row in rows]]) for reading in READINGS), None, None)


def judged(folder: Path, name: str, sets: Sets) -> Readings:
    """The readings and verdicts of a model in a folder of `dcr-ds evaluate`, in the order of the prompts."""
    readings, verdicts = {}, {}
    for benchmark in PAIRS[name][:2]:
        home = RunFolder(folder).model(ALIGNED).benchmark(benchmark)
        readings |= {(benchmark, row["id"]): row for row in read_jsonl(home.log_odds)}
        verdicts |= {(benchmark, row["id"]): row for row in read_jsonl(home.verdicts(JUDGE))}
    keys = [
        (PAIRS[name][harmful], prompt.id)
        for prompt, harmful in zip(sets.prompts, sets.harmful.astype(int), strict=True)
    ]
    labels = np.array([[verdicts[key]["label"] for key in keys]])
    scores = np.array([[verdicts[key]["score"] for key in keys]], dtype=float)
    return of_rows([readings[key] for key in keys])._replace(labels=labels, scores=scores)


def over_runs(readings: list[Readings]) -> Readings:
    return Readings(
        *(
            None if any(part is None for part in parts) else np.concatenate(parts)
            for parts in zip(*readings, strict=True)
        )
    )


def rows_of(run: str, name: str, sets: Sets, by_model: dict[str, Readings]) -> list[dict]:
    """The rows of a run, or of all runs, on a pair of sets: by model and reading, and the difference to the control."""
    rows = []
    for (model, readings), reading in itertools.product(by_model.items(), READINGS):
        values = getattr(readings, reading)
        results = discernment(values, sets.harmful, sets.pairs)
        if readings.labels is not None:
            results["agreement"] = agreement(values, readings.labels, sets.pairs)
            results["judged_j"] = youden_j(readings.labels, sets.harmful, sets.pairs)
            results["judge_auc"] = score_auc(readings.scores, sets.harmful, sets.pairs)
        refused = readings.margin > 0  # the operating point of greedy answers, by their openings
        point = {
            "complied_harmless": float((~refused)[:, ~sets.harmful].mean()),
            "refused_harmful": float(refused[:, sets.harmful].mean()),
        }
        rows.append(row_of((run, model, name, reading), sets, results, point))
    if {CONTROL, ALIGNED} <= set(by_model):
        rows += differences((run, DIFFERENCE, name), sets, by_model[ALIGNED], by_model[CONTROL])
    return rows


def differences(key: tuple[str, str, str], sets: Sets, ours: Readings, theirs: Readings) -> list[dict]:
    """The rows of the paired differences between two models."""
    rows = []
    for reading in READINGS:
        both = getattr(ours, reading), getattr(theirs, reading)
        results = discernment_difference(*both, sets.harmful, sets.pairs)
        if ours.labels is not None and theirs.labels is not None:
            results["judged_j"] = youden_j_difference(ours.labels, theirs.labels, sets.harmful, sets.pairs)
            results["judge_auc"] = score_auc_difference(ours.scores, theirs.scores, sets.harmful, sets.pairs)
        rows.append(row_of((*key, reading), sets, results, {}))
    return rows


def row_of(key: tuple[str, str, str, str], sets: Sets, results: dict[str, dict], point: dict[str, float]) -> dict:
    """A row; a figure that was not measured is empty."""

    def interval(name: str) -> list[float | None]:
        return [results.get(name, {}).get(part) for part in ("low", "high")]

    run, model, name, reading = key
    row = {"commit": commit(), "run": run, "model": model, "sets": name, "reading": reading}
    row |= {"harmless": int((~sets.harmful).sum()), "harmful": int(sets.harmful.sum())}
    row |= {figure: results[figure]["value"] for figure in SHOWN}
    row["auc_low"], row["auc_high"] = interval("auc")
    row |= {figure: point.get(figure) for figure in ("complied_harmless", "refused_harmful")}
    for figure in JUDGED:
        row[figure] = results.get(figure, {}).get("value")
        row[f"{figure}_low"], row[f"{figure}_high"] = interval(figure)
    return row


def show(row: dict) -> None:
    """Print a row: the AUC, and the figures of judged answers where there are any."""
    shown = [name for name in ("auc", *JUDGED) if row[name] is not None]
    cells = [
        f"{name} {row[name]:.3f} ({number(row[f'{name}_low'])} to {number(row[f'{name}_high'])})" for name in shown
    ]
    print(f"{row['sets']} {row['run']} {row['model']}, {row['reading']}: {', '.join(cells)}")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
