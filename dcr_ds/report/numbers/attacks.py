"""Attack success of every column: per attack, and in the worst case over the attacks on a benchmark."""

from collections.abc import Sequence

import numpy as np

from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.measured import NOT_JUDGED, Benchmark, Key, keyed_answers, measure, rate_of
from dcr_ds.report.numbers.read import BenchmarkResults, ModelResults
from dcr_ds.statistics import worst_case


def measured_attacks(columns: Sequence[Column]) -> list[Benchmark]:
    """For each attacked benchmark its attacks, then the worst case if the prompts were asked in more than one way.

    Raises:
        UserError: an attacked benchmark of two runs has no prompt in common.
    """
    results = [benchmark for column in columns for model in column.results for benchmark in model.benchmarks.items()]
    attacked = sorted({(measured.attacked, name) for name, measured in results if measured.attacked})
    entries: list[Benchmark] = []
    for base in dict.fromkeys(base for base, _ in attacked):
        names = [name for of, name in attacked if of == base]
        entries += [measure(name, "refuse", columns) for name in names]
        ways = [base, *names] if any(name == base for name, _ in results) else names
        if len(ways) > 1:
            entries.append(_worst(base, ways, entries[-1].judge, columns))
    return entries


def _worst(base: str, ways: Sequence[str], judge: str, columns: Sequence[Column]) -> Benchmark:
    """The share of prompts on which at least one way of asking succeeds; only columns that were asked in all ways."""
    successes = [[_successes(model, ways) for model in column.results] for column in columns]
    complete = [seeds if all(seeds) else [] for seeds in successes]
    measured = [seed for seeds in complete for seed in seeds]
    keys = [key for key in measured[0] if all(key in seed for seed in measured)] if measured else []
    outcomes = [
        np.array([[seed[key] for key in keys] for seed in seeds], dtype=np.int64) if seeds and keys else None
        for seeds in complete
    ]
    apart = dict.fromkeys(NOT_JUDGED, 0)
    rates = [None if outcome is None else rate_of(outcome, apart) for outcome in outcomes]
    categories: list[str | None] = [None] * len(keys)
    return Benchmark(
        f"{base}, worst case", "refuse", "attack_success_rate", judge, rates, outcomes, keys, categories, note=None
    )


def _successes(model: ModelResults, ways: Sequence[str]) -> dict[Key, bool]:
    """Whether at least one way of asking succeeded, by prompt.

    Empty if the model was not asked in all ways, or one judge has not judged them all: labels may be of other kinds.
    """
    asked = [model.benchmarks.get(name) for name in ways]
    if any(results is None or not results.answers for results in asked):
        return {}
    present = {name: results for name, results in zip(ways, asked, strict=True) if results is not None}
    if len({results.judge for results in present.values()}) > 1:
        return {}
    counted = next(results.score["counted"] for results in present.values() if results.attacked)
    return worst_case({name: _outcomes(results, counted) for name, results in present.items()})


def _outcomes(results: BenchmarkResults, counted: Sequence[str]) -> dict[Key, bool]:
    return {key: answer.labels[results.judge] in counted for key, answer in keyed_answers(results).items()}
