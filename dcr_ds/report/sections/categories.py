"""The section on categories: the rates of each benchmark by category, as bars, and differences to the reference."""

from collections.abc import Sequence

import numpy as np

from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.differences import category_differences
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table
from dcr_ds.report.render.tables import NOTHING, percent, words
from dcr_ds.report.sections.differences import difference_cell
from dcr_ds.statistics import rate


def categories(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Block]:
    """A table of rates and one of differences per benchmark; empty if no benchmark has categories."""
    rates = category_tables(columns, benchmarks)
    if not rates:
        return []
    explanation = (
        "Below each bar is its 95% Wilson interval; next to each name the number of prompts. Differences are paired, "
        "with 95% intervals as above. With few prompts and many categories some differences arise by chance: they "
        "show where to look and prove nothing."
    )
    differences = {benchmark.title: category_differences_table(columns, benchmark) for benchmark in benchmarks}
    pairs = [(table, differences[table.caption]) for table in rates]
    return [Paragraph(explanation), *(table for pair in pairs for table in pair if table)]


def category_tables(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Table]:
    """For each benchmark with categories, the rate of every model in each category, as bars."""
    tables = []
    for benchmark in benchmarks:
        kept = zip(columns, benchmark.outcomes, strict=True)
        scores = [_category_scores(column, benchmark, outcomes) for column, outcomes in kept]
        shown = [i for i, by_name in enumerate(scores) if by_name]
        names = sorted({name for by_name in scores for name in by_name})
        if len(names) > 1:
            rows = [
                Row(f"{words(name)} ({_size(scores, name)})", [_category_cell(scores[i].get(name)) for i in shown])
                for name in names
            ]
            tables.append(Table(benchmark.title, [columns[i].title for i in shown], [("", rows)], is_folded=True))
    return tables


def category_differences_table(columns: Sequence[Column], benchmark: Benchmark) -> Table | None:
    """Rate of each model minus that of the reference, by category; None if there is nothing to compare."""
    reference = reference_column(columns)
    if reference is None:
        return None
    at = list(columns).index(reference)
    changes = {i: category_differences(benchmark, i, at) for i in range(len(columns))}
    shown = [i for i, by_name in changes.items() if len(by_name) > 1]
    if not shown:
        return None
    rows = [
        Row(
            f"{words(name)} ({benchmark.categories.count(name)})",
            [difference_cell(changes[i].get(name)) for i in shown],
        )
        for name in changes[shown[0]]
    ]
    caption = f"{benchmark.title}, difference to {reference.title} in percentage points"
    return Table(caption, [columns[i].title for i in shown], [("", rows)], is_folded=True)


def _category_scores(column: Column, benchmark: Benchmark, outcomes: np.ndarray | None) -> dict[str, dict]:
    """The rates of a column by category; with several seeds their mean, without an interval.

    They are of the prompts that all columns have, or of all of its own where answers were not kept.
    """
    names = np.array([name or "" for name in benchmark.categories])
    if outcomes is not None and names.any():
        chosen = {name: outcomes[:, names == name] for name in benchmark.categories if name is not None}
        return {
            name: rate(int(rows.sum()), rows.size)
            if len(rows) == 1
            else {"n": rows.shape[1], "value": float(rows.mean())}
            for name, rows in chosen.items()
        }
    results = [model.benchmarks[benchmark.name] for model in column.results if benchmark.name in model.benchmarks]
    seeds = [result.score.get("by_category") or {} for result in results]
    if len(seeds) == 1:
        return seeds[0]
    common = set(seeds[0]).intersection(*seeds[1:]) if seeds else ()
    return {
        name: {"n": seeds[0][name]["n"], "value": sum(seed[name]["value"] for seed in seeds) / len(seeds)}
        for name in common
    }


def _size(scores: Sequence[dict], name: str) -> str:
    return "/".join(dict.fromkeys(str(by_name[name]["n"]) for by_name in scores if name in by_name))


def _category_cell(score: dict | None) -> Cell:
    if score is None or score["value"] is None:
        return Cell(NOTHING)
    interval = (f"{100 * score['low']:.0f}–{100 * score['high']:.0f}",) if "low" in score else ()
    return Cell(percent(score["value"], 0), interval, share=score["value"])
