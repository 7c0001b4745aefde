"""Differences to the reference model on the same prompts, means over benchmarks, and the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.statistics import Interval, mcnemar_p, mean_interval, paired_bootstrap, seeds_interval


@dataclass(frozen=True)
class Difference:
    """A rate minus that of the reference model, as a share; p of McNemar's test if both have one seed."""

    value: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class Mean:
    """The unweighted mean rate of a model over benchmarks."""

    value: float
    interval: Interval


def difference(benchmark: Benchmark, column: int, reference: int) -> Difference | None:
    """Rate of a column minus that of the reference on one benchmark; None if answers were not kept."""
    change = mean_difference([benchmark], column, reference)
    ours, theirs = benchmark.outcomes[column], benchmark.outcomes[reference]
    if change is None or ours is None or theirs is None or _has_seeds([benchmark], column, reference):
        return change
    return replace(change, p=mcnemar_p(ours[0] - theirs[0]))


def mean_difference(benchmarks: Sequence[Benchmark], column: int, reference: int) -> Difference | None:
    """Mean over benchmarks of a column's rate minus that of the reference; None if answers or seeds are missing."""
    ours, theirs = _kept(benchmarks, column), _kept(benchmarks, reference)
    if column == reference or not ours or not theirs:
        return None
    value = float(np.mean([a.mean() - b.mean() for a, b in zip(ours, theirs, strict=True)]))
    if _has_seeds(benchmarks, column, reference):
        return Difference(value, *seeds_interval(ours, theirs), None)
    return Difference(value, *paired_bootstrap([a[0] - b[0] for a, b in zip(ours, theirs, strict=True)]), None)


def category_differences(benchmark: Benchmark, column: int, reference: int) -> dict[str, Difference]:
    """Rate of a column minus that of the reference, by category; empty if answers or categories were not kept."""
    names = np.array([name or "" for name in benchmark.categories])
    changes = {}
    for name in sorted({name for name in benchmark.categories if name is not None}):
        outcomes = [rows if rows is None else rows[:, names == name] for rows in benchmark.outcomes]
        if change := mean_difference([replace(benchmark, outcomes=outcomes)], column, reference):
            changes[name] = change
    return changes


def mean_rate(benchmarks: Sequence[Benchmark], column: int) -> Mean | None:
    """The mean of a column's rates; None where one of them is missing, or is of fewer seeds than the others."""
    rates = [rate for benchmark in benchmarks if (rate := benchmark.rates[column]) is not None]
    if not rates or len(rates) < len(benchmarks):
        return None
    values = [rate.value for rate in rates]
    if _has_seeds(benchmarks, column):
        kept = _kept(benchmarks, column)
        return Mean(float(np.mean(values)), seeds_interval(kept)) if kept else None
    return Mean(float(np.mean(values)), mean_interval(values, [rate.interval for rate in rates]))


def _kept(benchmarks: Sequence[Benchmark], column: int) -> list[np.ndarray]:
    """A column's outcomes on all benchmarks; empty where those on one of them were not kept, or are of fewer seeds."""
    complete = [outcomes for benchmark in benchmarks if (outcomes := benchmark.outcomes[column]) is not None]
    is_complete = len(complete) == len(benchmarks) and len({len(outcomes) for outcomes in complete}) == 1
    return complete if is_complete else []


def _has_seeds(benchmarks: Sequence[Benchmark], *columns: int) -> bool:
    """Whether a column has several seeds."""
    complete = [benchmark.outcomes[column] for benchmark in benchmarks for column in columns]
    return any(outcomes is not None and len(outcomes) > 1 for outcomes in complete)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points of which no other is at least as high in both and higher in one, by place."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]
