"""The table of results, the differences to the reference model and the rates by category."""

from collections.abc import Callable, Sequence

from dcr_ds.report.numbers.columns import Column, reference_column, rivals
from dcr_ds.report.numbers.differences import Difference, category_differences, difference, mean_difference
from dcr_ds.report.numbers.measured import NOT_JUDGED, Benchmark, Rate
from dcr_ds.report.render.document import Cell, Row, Table
from dcr_ds.report.render.tables import NOTHING, count, number, percent, points, words
from dcr_ds.statistics import holm

GROUPS = {"comply": "Over-refusal: harmless prompts", "refuse": "Safety: harmful prompts"}
GENERAL = "General ability"


def results_table(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> Table:
    """Benchmarks as rows, grouped by what is wanted, models as columns; then what is known of general ability."""
    groups = [(title, _benchmark_rows(columns, _wanting(benchmarks, wanted))) for wanted, title in GROUPS.items()]
    groups.append((GENERAL, _ability_rows(columns) + _loss_rows(columns)))
    caption = "Rates of wanted answers, with 95% intervals; the best of a row in bold."
    return Table(caption, ["n", *(column.title for column in columns)], [group for group in groups if group[1]])


def differences_table(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> Table | None:
    """Each model less the reference on the same prompts; None where there is nothing to compare."""
    reference = reference_column(columns)
    if reference is None:
        return None
    at = list(columns).index(reference)
    others = [i for i, column in enumerate(columns) if column.results and i != at]
    cells = {i: _difference_cells(benchmarks, i, at) for i in others}
    groups = []
    for wanted, title in GROUPS.items():
        ours = _wanting(benchmarks, wanted)
        rows = [Row(one.title, [cells[i][one.title] for i in others]) for one in ours]
        if len(ours) > 1:
            rows.append(Row("mean", [_difference_cell(mean_difference(ours, i, at)) for i in others]))
        groups.append((title, rows))
    shown = [group for group in groups if any(cell.text != NOTHING for row in group[1] for cell in row.cells)]
    if not shown:
        return None
    caption = f"Difference to {reference.title} in percentage points, with 95% intervals."
    return Table(caption, [columns[i].title for i in others], shown)


def category_tables(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Table]:
    """For each benchmark with categories, the rate of every model in each of them, as bars."""
    tables = []
    for benchmark in benchmarks:
        scores = [_category_scores(column, benchmark) for column in columns]
        shown = [i for i, each in enumerate(scores) if each]
        names = sorted({name for each in scores for name in each})
        if len(names) > 1:
            rows = [
                Row(f"{words(name)} ({_size(scores, name)})", [_category_cell(scores[i].get(name)) for i in shown])
                for name in names
            ]
            tables.append(Table(benchmark.title, [columns[i].title for i in shown], [("", rows)]))
    return tables


def category_differences_table(columns: Sequence[Column], benchmark: Benchmark) -> Table | None:
    """Each model less the reference in each category of a benchmark; None where there is nothing to compare."""
    reference = reference_column(columns)
    if reference is None:
        return None
    at = list(columns).index(reference)
    found = {i: category_differences(benchmark, i, at) for i in range(len(columns))}
    shown = [i for i, differences in found.items() if len(differences) > 1]
    if not shown:
        return None
    rows = [
        Row(
            f"{words(name)} ({benchmark.categories.count(name)})", [_difference_cell(found[i].get(name)) for i in shown]
        )
        for name in found[shown[0]]
    ]
    caption = f"{benchmark.title}, difference to {reference.title} in percentage points"
    return Table(caption, [columns[i].title for i in shown], [("", rows)])


def loss_change(loss: float, base: float) -> str:
    return f"{points(loss / base - 1)}%"


def _wanting(benchmarks: Sequence[Benchmark], wanted: str) -> list[Benchmark]:
    return [benchmark for benchmark in benchmarks if benchmark.wanted == wanted]


def _benchmark_rows(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Row]:
    rows = []
    contenders = rivals(columns)
    for benchmark in benchmarks:
        values = [rate.value if rate and columns[i] in contenders else None for i, rate in enumerate(benchmark.rates)]
        best = _best(values, max)
        cells = [_rate_cell(rate, i in best, benchmark.n is None) for i, rate in enumerate(benchmark.rates)]
        size = Cell(count(benchmark.n) if benchmark.n is not None else "")
        rows.append(Row(benchmark.title, [size, *cells]))
        for label in NOT_JUDGED:
            if any(rate.apart[label] for rate in benchmark.rates if rate):
                counts = [Cell(count(rate.apart[label]) if rate else NOTHING) for rate in benchmark.rates]
                rows.append(Row(f"{benchmark.name}: {label}", [size, *counts]))
    return rows


def _rate_cell(rate: Rate | None, is_best: bool, show_n: bool) -> Cell:
    if rate is None:
        return Cell(NOTHING)
    sizes = [f"n={rate.n}"] if show_n else []
    return Cell(percent(rate.value), (_interval(rate.low, rate.high), *sizes), is_best)


def _ability_rows(columns: Sequence[Column]) -> list[Row]:
    """A row a task of lm-eval; of several seeds the mean, without an interval: they answered the same questions."""
    contenders = rivals(columns)
    tasks = {
        (task, score["metric"]): None for c in columns for model in c.results for task, score in model.ability.items()
    }
    rows = []
    for task, metric in tasks:
        scores = [[model.ability[task] for model in column.results if task in model.ability] for column in columns]
        means = [sum(score["value"] for score in each) / len(each) if each else None for each in scores]
        best = _best([mean if column in contenders else None for mean, column in zip(means, columns, strict=True)], max)
        cells = [
            Cell(percent(mean), (_interval(each[0]["low"], each[0]["high"]),) if len(each) == 1 else (), i in best)
            for i, (mean, each) in enumerate(zip(means, scores, strict=True))
        ]
        sizes = {score["n"] for each in scores for score in each}
        rows.append(Row(f"{task}: {metric} ↑", [Cell(count(sizes.pop()) if len(sizes) == 1 else ""), *cells]))
    return rows


def _best(values: Sequence[float | None], better: Callable) -> set[int]:
    """Places of the best value, all of them if there are several; none where there is nothing to compare."""
    known = [value for value in values if value is not None]
    return {i for i, value in enumerate(values) if len(known) > 1 and value == better(known)}


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _loss_rows(columns: Sequence[Column]) -> list[Row]:
    losses = [[model.general_loss for model in column.results if model.general_loss] for column in columns]
    if not any(losses):
        return []
    sizes = {loss["n"] for each in losses for loss in each}
    means = [sum(loss["loss"] for loss in each) / len(each) if each else None for each in losses]
    contenders = rivals(columns)
    best = _best([mean if column in contenders else None for mean, column in zip(means, columns, strict=True)], min)
    cells = [
        Cell(number(mean), _change_to_base(column, columns, mean), i in best)
        for i, (column, mean) in enumerate(zip(columns, means, strict=True))
    ]
    return [Row("loss on held-out answers ↓", [Cell(count(sizes.pop()) if len(sizes) == 1 else ""), *cells])]


def _change_to_base(column: Column, columns: Sequence[Column], mean: float | None) -> tuple[str, ...]:
    """The change of a mean loss against the base model of the same run or, where it has none, of another."""
    bases = [run.models["base"] for run in column.runs if "base" in run.models]
    bases = bases or [base for c in columns if c.model == "base" for base in c.results]
    losses = [base.general_loss["loss"] for base in bases if base.general_loss]
    if column.model == "base" or mean is None or not losses:
        return ()
    return (loss_change(mean, sum(losses) / len(losses)),)


def _difference_cells(benchmarks: Sequence[Benchmark], column: int, reference: int) -> dict[str, Cell]:
    """The differences of one column by title of the benchmark; p is adjusted for all that were looked at."""
    found = {one.title: difference(one, column, reference) for one in benchmarks}
    tested = {title: one.p for title, one in found.items() if one and one.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {title: _difference_cell(one, adjusted.get(title)) for title, one in found.items()}


def _difference_cell(found: Difference | None, p: float | None = None) -> Cell:
    if found is None:
        return Cell(NOTHING)
    tested = () if p is None else ("p<0.001",) if p < 0.001 else (f"p={p:.3f}",)
    return Cell(points(found.value), (f"{points(found.low)} to {points(found.high)}", *tested))


def _category_scores(column: Column, benchmark: Benchmark) -> dict[str, dict]:
    """By category the score of a column; of several seeds their mean, without an interval."""
    results = [model.benchmarks[benchmark.name] for model in column.results if benchmark.name in model.benchmarks]
    seeds = [each.score.get("by_category") or {} for each in results]
    if len(seeds) == 1:
        return seeds[0]
    common = set(seeds[0]).intersection(*seeds[1:]) if seeds else ()
    return {
        name: {"n": seeds[0][name]["n"], "value": sum(each[name]["value"] for each in seeds) / len(seeds)}
        for name in common
    }


def _size(scores: Sequence[dict], name: str) -> str:
    return "/".join(dict.fromkeys(str(each[name]["n"]) for each in scores if name in each))


def _category_cell(score: dict | None) -> Cell:
    if score is None or score["value"] is None:
        return Cell(NOTHING)
    interval = (f"{100 * score['low']:.0f}–{100 * score['high']:.0f}",) if "low" in score else ()
    return Cell(percent(score["value"], 0), interval, share=score["value"])
