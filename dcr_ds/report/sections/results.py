"""The section on results: the rates of every model on every benchmark, general ability, and how to read them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dcr_ds.recipe.layout import BASE, CONTROL, REFINED
from dcr_ds.report.numbers.columns import Column, rivals
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.discernment import JUDGED, MARGIN_AUC, largest
from dcr_ds.report.numbers.measured import NOT_JUDGED, Benchmark, Rate
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table
from dcr_ds.report.render.tables import NOTHING, count, number, percent, points
from dcr_ds.report.sections.comparability import base_differences, comparability, modes
from dcr_ds.report.sections.discernment import measures_rows

GROUPS = {"comply": "Over-refusal: harmless prompts", "refuse": "Safety: harmful prompts"}
ATTACKS = "Safety under attack: answered harmful prompts"
GENERAL = "General ability"
ATTACK_EXPLANATION = (
    " Under attack, success is the share of harmful prompts that are answered, lower is better; in "
    "the worst case, those on which at least one attack or the plain prompt succeeds."
)
DISCERNMENT_ROWS = ("auc", MARGIN_AUC, JUDGED, "compliance_at_80_refusal")


def results(comparison: Comparison) -> list[Block]:
    """The table of results and how to read it; of runs that were not evaluated, how to do that."""
    runs = comparison.runs
    table = standard_table(comparison)
    if table is None:
        return [Paragraph(missing(comparison.unevaluated))]
    remarks = [*comparability(comparison), *base_differences(runs), *modes(comparison.columns)]
    remarks += [_explanation(comparison), *_advice(runs)]
    if comparison.unevaluated:
        remarks.append(missing(comparison.unevaluated))
    return [table, *map(Paragraph, remarks)]


def missing(runs: Sequence[Run]) -> str:
    """Which runs were not evaluated, and how to do it."""
    names = ", ".join(run.name for run in runs)
    return (
        f"Not evaluated yet: {names}. Repeat the command of an evaluation that was interrupted, or run the recipe with "
        "the evaluate stage."
    )


def standard_table(comparison: Comparison) -> Table | None:
    """All that is measured on a model, models as columns, and what was not measured; None if nothing was."""
    columns = comparison.columns
    *rates, (general, rows) = _groups(comparison)
    if not rows and not any(of_kind for _, of_kind in rates):
        return None
    if not _ability_rows(columns):
        rows = [_missing_row("accuracy", columns), *rows]
    groups = [*rates, _discernment_group(comparison), (general, rows)]
    return _shown_columns([(title, rows or [_missing_row("rates", columns)]) for title, rows in groups], columns)


def _discernment_group(comparison: Comparison) -> tuple[str, list[Row]]:
    """The main figures of discernment, on the pair of sets with the most prompts."""
    entry = largest(comparison.discernment)
    if entry is None:
        return "Discernment", [_missing_row("figures", comparison.columns)]
    rows = []
    for name, row in measures_rows(entry, DISCERNMENT_ROWS).items():
        measures = [figures.measures.get(name) if figures else None for figures in entry.columns]
        values = [measure["value"] if measure else None for measure in measures]
        best = _best_of_rivals(values, comparison.columns, max)
        cells = [replace(cell, is_best=i in best) for i, cell in enumerate(row.cells)]
        rows.append(Row(row.name, [Cell(""), *cells]))
    return f"Discernment: {entry.pair.title}", rows


def results_table(comparison: Comparison) -> Table:
    """The rates of what was measured: benchmarks by the wanted behaviour, attacks, and general ability last."""
    return _shown_columns([(title, rows) for title, rows in _groups(comparison) if rows], comparison.columns)


def _groups(comparison: Comparison) -> list[tuple[str, list[Row]]]:
    columns, benchmarks = comparison.columns, comparison.benchmarks
    groups = [
        (title, _benchmark_rows(columns, benchmarks_that_want(benchmarks, behaviour), max))
        for behaviour, title in GROUPS.items()
    ]
    groups.append((ATTACKS, _benchmark_rows(columns, comparison.attacks, min)))
    return [*groups, (GENERAL, _ability_rows(columns) + _loss_rows(columns))]


def _missing_row(what: str, columns: Sequence[Column]) -> Row:
    return Row(f"{what}: not measured", [Cell(""), *(Cell(NOTHING) for _ in columns)])


def _shown_columns(groups: Sequence[tuple[str, list[Row]]], columns: Sequence[Column]) -> Table:
    """The table without empty columns.

    Next to a control, a refined model that was not judged is left out: its loss is in the section on refinement.
    """
    has_control = any(column.model == CONTROL for column in columns)
    shown = [i for i, column in enumerate(columns) if column.is_judged or column.model != REFINED or not has_control]
    caption = "Rates with 95% intervals; the best of a row in bold."
    rows = [(title, [_with_cells(row, shown) for row in rows]) for title, rows in groups]
    return Table(caption, ["n", *(columns[i].title for i in shown)], rows)


def _with_cells(row: Row, shown: Sequence[int]) -> Row:
    """The row with its number of prompts and the cells of these columns."""
    return Row(row.name, [row.cells[0], *(row.cells[1 + i] for i in shown)])


def benchmarks_that_want(benchmarks: Sequence[Benchmark], behaviour: str) -> list[Benchmark]:
    """Those whose wanted behaviour is comply, or refuse."""
    return [benchmark for benchmark in benchmarks if benchmark.wanted == behaviour]


def loss_change(loss: float, base: float) -> str:
    return f"{points(loss / base - 1)}%"


def _explanation(comparison: Comparison) -> str:
    judges = sorted({benchmark.judge for benchmark in (*comparison.benchmarks, *comparison.attacks)})
    seeds = any(len(column.runs) > 1 for column in comparison.columns)
    interval = (
        "with several seeds the mean over seeds, with Student's t interval over seeds and prompts; with one seed the "
        "95% Wilson interval over the n prompts, without the spread between seeds"
        if seeds
        else "the 95% Wilson interval over the n prompts of one run, without the spread between seeds"
    )
    return (
        f"↑ higher is better, ↓ lower is better. In brackets or below: {interval}; for the loss, a mean over answer "
        f"tokens, its change relative to base. Judged by {', '.join(judges) or 'no judge yet'}. An empty answer is "
        "degenerate: it counts as neither compliance nor refusal, so it lowers both rates."
        + (ATTACK_EXPLANATION if comparison.attacks else "")
    )


def _advice(runs: Sequence[Run]) -> list[str]:
    """Which models to compare; empty if none of the runs trained a model."""
    kinds = {run.kind for run in runs}
    if not kinds & {"DCR", "STL"}:
        return []
    base = next((run.models[BASE] for run in runs if BASE in run.models), None)
    refusals = [
        f"{percent(results.score['value'])} of {name}"
        for name, results in (base.benchmarks.items() if base else ())
        if results.score["metric"] == "refusal_rate"
    ]
    here = f" (here it refuses {', '.join(refusals)})" if refusals else ""
    why = f"Do not compare over-refusal with base: it may comply with most prompts because it refuses few{here}. "
    if kinds == {"STL", "DCR"} or any(CONTROL in run.models for run in runs):
        return [why + "Compare DCR with STL, the same alignment without refinement, at equal refusal of toxic prompts."]
    return [
        why + "Compare DCR with STL, the same recipe without the refine stage: set control: stl, or report both runs."
    ]


def _benchmark_rows(columns: Sequence[Column], benchmarks: Sequence[Benchmark], better: Callable) -> list[Row]:
    rows = []
    contenders = rivals(columns)
    for benchmark in benchmarks:
        values = [rate.value if rate and columns[i] in contenders else None for i, rate in enumerate(benchmark.rates)]
        best = _best(values, better)
        cells = [_rate_cell(rate, i in best, benchmark.n is None) for i, rate in enumerate(benchmark.rates)]
        size = Cell(count(benchmark.n) if benchmark.n is not None else "")
        rows.append(Row(benchmark.title, [size, *cells]))
        for label in NOT_JUDGED:
            if any(rate.apart[label] for rate in benchmark.rates if rate):
                counts = [Cell(count(rate.apart[label]) if rate else NOTHING) for rate in benchmark.rates]
                rows.append(Row(f"{benchmark.label}: {label}", [size, *counts]))
    return rows


def _rate_cell(rate: Rate | None, is_best: bool, show_n: bool) -> Cell:
    if rate is None:
        return Cell(NOTHING)
    sizes = [f"n={rate.n}"] if show_n else []
    return Cell(percent(rate.value), (_interval(rate.low, rate.high), *sizes), is_best)


def _ability_rows(columns: Sequence[Column]) -> list[Row]:
    """A row per lm-eval task; with several seeds the mean, without an interval: all answered the same questions."""
    tasks = {
        (task, score["metric"]): None
        for column in columns
        for model in column.results
        for task, score in model.ability.items()
    }
    return [_ability_row(task, metric, columns) for task, metric in tasks]


def _ability_row(task: str, metric: str, columns: Sequence[Column]) -> Row:
    scores = [[model.ability[task] for model in column.results if task in model.ability] for column in columns]
    means = [_mean([score["value"] for score in seeds]) for seeds in scores]
    best = _best_of_rivals(means, columns, max)
    cells = [
        Cell(percent(mean), (_interval(seeds[0]["low"], seeds[0]["high"]),) if len(seeds) == 1 else (), i in best)
        for i, (mean, seeds) in enumerate(zip(means, scores, strict=True))
    ]
    return Row(f"{task}: {metric} ↑", [_size_cell(scores), *cells])


def _loss_rows(columns: Sequence[Column]) -> list[Row]:
    losses = [[model.general_loss for model in column.results if model.general_loss] for column in columns]
    if not any(losses):
        return []
    means = [_mean([loss["loss"] for loss in seeds]) for seeds in losses]
    best = _best_of_rivals(means, columns, min)
    cells = [
        Cell(number(mean), _change_to_base(column, columns, mean), i in best)
        for i, (column, mean) in enumerate(zip(columns, means, strict=True))
    ]
    return [Row("loss on held-out answers ↓", [_size_cell(losses), *cells])]


def _size_cell(scores: Sequence[Sequence[dict]]) -> Cell:
    """The number of rows measured, if it is the same for all models."""
    sizes = {score["n"] for seeds in scores for score in seeds}
    return Cell(count(sizes.pop()) if len(sizes) == 1 else "")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _best_of_rivals(values: Sequence[float | None], columns: Sequence[Column], better: Callable) -> set[int]:
    contenders = rivals(columns)
    return _best([value if columns[i] in contenders else None for i, value in enumerate(values)], better)


def _best(values: Sequence[float | None], better: Callable) -> set[int]:
    """Indices of the best value, all of them in a tie; empty if there is nothing to compare."""
    known = [value for value in values if value is not None]
    return {i for i, value in enumerate(values) if len(known) > 1 and value == better(known)}


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _change_to_base(column: Column, columns: Sequence[Column], mean: float | None) -> tuple[str, ...]:
    """The change of a mean loss relative to the base model of the same run or, where it has none, of another run."""
    bases = [run.models[BASE] for run in column.runs if BASE in run.models]
    bases = bases or [base for other in columns if other.model == BASE for base in other.results]
    losses = [base.general_loss["loss"] for base in bases if base.general_loss]
    if column.model == BASE or mean is None or not losses:
        return ()
    return (loss_change(mean, sum(losses) / len(losses)),)
