"""The report in one sentence: what the model that matters does more or less often than the reference."""

from collections.abc import Sequence

from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.differences import mean_difference, mean_rate
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.render.tables import percent, points

CLAUSES = {"compliance_rate": ("complies with", "harmless prompts"), "refusal_rate": ("refuses", "harmful prompts")}


def headline(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> str:
    """The last column against the reference, on the means over benchmarks; nothing where answers were not kept."""
    reference = reference_column(columns)
    measured = [column for column in columns if column.results and column is not reference]
    if reference is None or not measured:
        return ""
    clauses = []
    for metric, words in CLAUSES.items():
        ours = [benchmark for benchmark in benchmarks if benchmark.metric == metric]
        clauses.append(_clause(ours, words, columns, measured[-1], reference))
    said = [clause for clause in clauses if clause]
    return f"{measured[-1].title} {', and '.join(said)}." if said else ""


def _clause(
    ours: Sequence[Benchmark], words: tuple[str, str], columns: Sequence[Column], column: Column, reference: Column
) -> str:
    this, that = columns.index(column), columns.index(reference)
    one, other, change = mean_rate(ours, this), mean_rate(ours, that), mean_difference(ours, this, that)
    if not one or not other or not change:
        return ""
    verb, prompts = words
    mean = f", mean of {len(ours)} benchmarks" if len(ours) > 1 else ""
    return (
        f"{verb} {percent(one.value)} of {prompts}, {reference.title} {percent(other.value)} "
        f"({points(change.value)} points, 95% interval {points(change.low)} to {points(change.high)}{mean})"
    )
