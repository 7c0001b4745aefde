"""The section on differences to the reference model, on the same prompts."""

from collections.abc import Sequence

from dcr_ds.report.numbers.columns import reference_column
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.differences import Difference, difference, mean_difference
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table
from dcr_ds.report.render.tables import NOTHING, points
from dcr_ds.report.sections.results import ATTACKS, GROUPS, benchmarks_that_want
from dcr_ds.statistics import holm


def differences(comparison: Comparison) -> list[Block]:
    """The table of differences and how to read it; empty if there is nothing to compare."""
    table, reference = differences_table(comparison), reference_column(comparison.columns)
    if table is None or reference is None:
        return []
    explanation = (
        f"Rate of each model minus that of {reference.title}, on the same prompts. Intervals are percentiles of 10,000 "
        "bootstrap resamples of the prompts, with both answers to a prompt kept together; with several seeds, "
        "Student's t over seeds and prompts. p is McNemar's exact test with Holm's correction for the benchmarks of a "
        "column, and for its attacks. The intervals are not corrected: of twenty true differences of zero, one "
        "interval excludes zero by chance."
    )
    return [table, Paragraph(explanation)]


def differences_table(comparison: Comparison) -> Table | None:
    """Rate of each model minus that of the reference; None if there is nothing to compare."""
    columns, benchmarks = comparison.columns, comparison.benchmarks
    reference = reference_column(columns)
    if reference is None:
        return None
    at = list(columns).index(reference)
    others = [i for i, column in enumerate(columns) if column.is_judged and i != at]
    cells = {i: _cells_by_title(benchmarks, i, at) for i in others}
    groups = []
    for behaviour, title in GROUPS.items():
        members = benchmarks_that_want(benchmarks, behaviour)
        rows = [Row(benchmark.title, [cells[i][benchmark.title] for i in others]) for benchmark in members]
        if len(members) > 1:
            rows.append(Row("mean", [difference_cell(mean_difference(members, i, at)) for i in others]))
        groups.append((title, rows))
    attacked = {i: _cells_by_title(comparison.attacks, i, at) for i in others}
    rows = [Row(attack.title, [attacked[i][attack.title] for i in others]) for attack in comparison.attacks]
    groups.append((ATTACKS, rows))
    shown = [group for group in groups if any(cell.text != NOTHING for row in group[1] for cell in row.cells)]
    if not shown:
        return None
    caption = f"Difference to {reference.title} in percentage points, with 95% intervals."
    return Table(caption, [columns[i].title for i in others], shown)


def difference_cell(change: Difference | None, p: float | None = None) -> Cell:
    if change is None:
        return Cell(NOTHING)
    tested = () if p is None else ("p<0.001",) if p < 0.001 else (f"p={p:.3f}",)
    return Cell(points(change.value), (f"{points(change.low)} to {points(change.high)}", *tested))


def _cells_by_title(benchmarks: Sequence[Benchmark], column: int, reference: int) -> dict[str, Cell]:
    """The differences of one column by benchmark title; p is corrected for the number of benchmarks."""
    changes = {benchmark.title: difference(benchmark, column, reference) for benchmark in benchmarks}
    raw = {title: change.p for title, change in changes.items() if change and change.p is not None}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    return {title: difference_cell(change, corrected.get(title)) for title, change in changes.items()}
