"""The report in one sentence: what the last model changed against the control, or its rates without a control."""

from collections.abc import Sequence

from dcr_ds.recipe.layout import BASE
from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.differences import difference, mean_difference, mean_rate
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.render.tables import percent, points
from dcr_ds.report.sections.discernment import sentence

CLAUSES = {"compliance_rate": ("complies with", "harmless prompts"), "refusal_rate": ("refuses", "harmful prompts")}


def headline(comparison: Comparison) -> str:
    """Discernment first, then rates averaged over benchmarks, then attacks; empty where answers were not kept.

    A base model refuses little, so the last column is never compared with it here: without a control it stands alone.
    """
    columns, benchmarks = comparison.columns, comparison.benchmarks
    reference = reference_column(columns)
    others = [column for column in columns if column.results and column is not reference]
    if reference is None or not others:
        return ""
    control = None if reference.model == BASE else reference
    clauses = []
    for metric, words in CLAUSES.items():
        ours = [benchmark for benchmark in benchmarks if benchmark.metric == metric]
        clauses.append(_clause(ours, words, columns, others[-1], control))
    complete = [clause for clause in clauses if clause]
    rates = f"{others[-1].title} {', and '.join(complete)}." if complete else ""
    parts = [sentence(columns, comparison.discernment), rates, easier_to_attack(comparison)] if control else [rates]
    return " ".join(part for part in parts if part)


def easier_to_attack(comparison: Comparison) -> str:
    """A sentence if an attack succeeds more often on the last model than on the control; empty without a control."""
    columns = comparison.columns
    reference = reference_column(columns)
    others = [column for column in columns if column.results and column is not reference]
    if reference is None or reference.model == BASE or not others:
        return ""
    ours, theirs = columns.index(others[-1]), columns.index(reference)
    changes = {attack.label: difference(attack, ours, theirs) for attack in comparison.attacks}
    higher = [
        f"{name} ({points(change.value)} points, 95% interval {points(change.low)} to {points(change.high)})"
        for name, change in changes.items()
        if change and change.low > 0
    ]
    if not higher:
        return ""
    return f"Attacks succeed more often on {others[-1].title} than on {reference.title}: {'; '.join(higher)}."


def _clause(
    ours: Sequence[Benchmark], words: tuple[str, str], columns: Sequence[Column], column: Column, control: Column | None
) -> str:
    rate = mean_rate(ours, columns.index(column))
    if not rate:
        return ""
    verb, prompts = words
    mean = f", mean of {len(ours)} benchmarks" if len(ours) > 1 else ""
    text = f"{verb} {percent(rate.value)} of {prompts}"
    if control is None:
        low, high = rate.interval
        return f"{text} (95% interval {100 * low:.1f} to {100 * high:.1f}{mean})"
    other = mean_rate(ours, columns.index(control))
    change = mean_difference(ours, columns.index(column), columns.index(control))
    if not other or not change:
        return ""
    interval = f"95% interval {points(change.low)} to {points(change.high)}"
    return f"{text}, {control.title} {percent(other.value)} ({points(change.value)} points, {interval}{mean})"
