"""Differences to the reference model on the same prompts, means over benchmarks, and who is on the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.statistics import Interval, mcnemar_p, mean_interval, paired_bootstrap, seeds_interval


@dataclass(frozen=True)
class Difference:
    """A rate less that of the reference model, as a share; p is McNemar's, where both are of one seed."""

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
    """A column's rate less the reference's on the prompts of one benchmark; None where answers were not kept."""
    found = mean_difference([benchmark], column, reference)
    ours, theirs = benchmark.outcomes[column], benchmark.outcomes[reference]
    if found is None or ours is None or theirs is None or _has_seeds([benchmark], column, reference):
        return found
    return replace(found, p=mcnemar_p(ours[0] - theirs[0]))


def mean_difference(benchmarks: Sequence[Benchmark], column: int, reference: int) -> Difference | None:
    """The mean over benchmarks of a column's rate less the reference's; None where answers were not kept."""
    ours, theirs = _kept(benchmarks, column), _kept(benchmarks, reference)
    if column == reference or not ours or not theirs:
        return None
    value = float(np.mean([one.mean() - other.mean() for one, other in zip(ours, theirs, strict=True)]))
    if _has_seeds(benchmarks, column, reference):
        return Difference(value, *seeds_interval(ours, theirs), None)
    return Difference(
        value, *paired_bootstrap([one[0] - other[0] for one, other in zip(ours, theirs, strict=True)]), None
    )


def category_differences(benchmark: Benchmark, column: int, reference: int) -> dict[str, Difference]:
    """By category a column's rate less the reference's; nothing where the answers or their categories were not kept."""
    names = np.array([name or "" for name in benchmark.categories])
    found = {}
    for name in sorted({name for name in benchmark.categories if name is not None}):
        outcomes = [one if one is None else one[:, names == name] for one in benchmark.outcomes]
        if one := mean_difference([replace(benchmark, outcomes=outcomes)], column, reference):
            found[name] = one
    return found


def mean_rate(benchmarks: Sequence[Benchmark], column: int) -> Mean | None:
    """The mean of a column's rates; None where one of them is missing."""
    rates = [rate for benchmark in benchmarks if (rate := benchmark.rates[column]) is not None]
    if not rates or len(rates) < len(benchmarks):
        return None
    values = [rate.value for rate in rates]
    if _has_seeds(benchmarks, column):
        return Mean(float(np.mean(values)), seeds_interval(_kept(benchmarks, column)))
    return Mean(float(np.mean(values)), mean_interval(values, [rate.interval for rate in rates]))


def _kept(benchmarks: Sequence[Benchmark], column: int) -> list[np.ndarray]:
    """A column's outcomes on all benchmarks; empty where those on one of them were not kept."""
    kept = [outcomes for benchmark in benchmarks if (outcomes := benchmark.outcomes[column]) is not None]
    return kept if len(kept) == len(benchmarks) else []


def _has_seeds(benchmarks: Sequence[Benchmark], *columns: int) -> bool:
    """Whether a column has several seeds (of the same number on every benchmark)."""
    kept = [benchmark.outcomes[column] for benchmark in benchmarks for column in columns]
    return any(outcomes is not None and len(outcomes) > 1 for outcomes in kept)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points of which no other is at least as high in both and higher in one, by place."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]
