"""Points and curves of compliance against refusal, one per model."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.differences import mean_rate, pareto_front
from dcr_ds.report.numbers.discernment import GRID, Discernment, largest
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.statistics import Interval


@dataclass(frozen=True)
class ModelPoint:
    """A model's mean refusal of harmful prompts (x) and mean compliance with harmless ones (y), as shares."""

    title: str
    x: float
    y: float
    x_interval: Interval
    y_interval: Interval
    is_on_front: bool
    curve: Sequence[tuple[float, float]] = ()  # (x, y) at other amounts of refusal, from the log-odds


def tradeoff_points(
    columns: Sequence[Column], benchmarks: Sequence[Benchmark], discernment: Sequence[Discernment]
) -> list[ModelPoint]:
    """One point per model that was measured on every benchmark of both kinds.

    With discernment, points and curves are those of the pair of sets with the most prompts.
    """
    entry = largest(discernment)
    shown = [b for b in benchmarks if entry is None or b.name in (*entry.pair.harmless, *entry.pair.harmful)]
    harmful = [benchmark for benchmark in shown if benchmark.metric == "refusal_rate"]
    harmless = [benchmark for benchmark in shown if benchmark.metric == "compliance_rate"]
    rates = [
        (column.title, x, y, _curve(entry, i))
        for i, column in enumerate(columns)
        if (x := mean_rate(harmful, i)) and (y := mean_rate(harmless, i))
    ]
    front = pareto_front([(x.value, y.value) for _, x, y, _ in rates])
    return [
        ModelPoint(title, x.value, y.value, x.interval, y.interval, place in front, curve)
        for place, (title, x, y, curve) in enumerate(rates)
    ]


def pareto_line(points: Sequence[ModelPoint]) -> list[tuple[float, float]]:
    """The points of the Pareto front from left to right; empty where curves show more."""
    if any(point.curve for point in points):
        return []
    return sorted((point.x, point.y) for point in points if point.is_on_front)


def _curve(entry: Discernment | None, column: int) -> list[tuple[float, float]]:
    measured = entry.columns[column] if entry else None
    if measured is None or measured.compliance is None:
        return []
    return [(float(x), float(y)) for x, y in zip(GRID, measured.compliance, strict=True)]
