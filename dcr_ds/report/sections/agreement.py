"""The section on judges: the rates by judge, their agreement (kappa), and how their labels differ."""

from collections.abc import Iterable, Sequence
from itertools import combinations

from dcr_ds.label_agreement import Agreement, agree_on_pairs, confusion_labels, judged_matter
from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.measured import Benchmark, keyed_answers
from dcr_ds.report.numbers.read import Answer
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table, plain_table
from dcr_ds.report.render.tables import NOTHING, count, number, percent, words


def agreement(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Block]:
    """Tables of the judges; empty if there is only one."""
    columns = [column for column in columns if column.is_judged]
    answers = [answer for column in columns for answer in _answers(column)]
    judges = sorted({judge for answer in answers for judge in answer.labels})
    if len(judges) < 2:
        return []
    pairs = [
        (first, second, agree_on_pairs(labels))
        for first, second in combinations(judges, 2)
        if (labels := [(a.labels[first], a.labels[second]) for a in answers if {first, second} <= set(a.labels)])
        and judged_matter([a for a, _ in labels]) == judged_matter([b for _, b in labels])
    ]
    rows = [["", "answers", "same label", "Cohen's kappa"]]
    for first, second, figures in pairs:
        same = percent(figures.accuracy)
        rows.append([f"{first} and {second}", count(figures.n), same, number(figures.kappa, 2)])
    explanation = (
        "Agreement over all answers of all models. Kappa is agreement beyond chance, at most 1; judges can agree and "
        "both be wrong. Judges of harm are compared only with each other: harm is not refusal."
    )
    by_judge = _rates_by_judge(columns, benchmarks, judges)
    if len(rows) == 1:
        return by_judge
    confusions = [_confusion(*pair) for pair in pairs]
    return [*by_judge, plain_table("Agreement of judges.", rows), Paragraph(explanation), *confusions]


def _answers(column: Column) -> Iterable[Answer]:
    for model in column.results:
        for results in model.benchmarks.values():
            yield from results.answers.values()


def _rates_by_judge(columns: Sequence[Column], benchmarks: Sequence[Benchmark], judges: Sequence[str]) -> list[Block]:
    """The rate of every model by each judge: a row per benchmark and judge."""
    groups = []
    for benchmark in benchmarks:
        rows = [Row(judge, [Cell(_rate_by(column, benchmark, judge)) for column in columns]) for judge in judges]
        shown = [row for row in rows if any(cell.text != NOTHING for cell in row.cells)]
        groups += [(benchmark.title, shown)] if shown else []
    explanation = "A judge of harm gives the share of harmless answers, which is also high for a model that refuses."
    table = Table("Rates by judge.", [column.title for column in columns], groups)
    return [table, Paragraph(explanation)] if groups else []


def _rate_by(column: Column, benchmark: Benchmark, judge: str) -> str:
    """The rate on the prompts that all columns have, as in the table of results."""
    rows = [
        answers[key].labels[judge] in counted
        for model in column.results
        if benchmark.name in model.benchmarks and (counted := model.benchmarks[benchmark.name].counts(judge))
        for answers in [keyed_answers(model.benchmarks[benchmark.name])]
        for key in benchmark.prompts
        if key in answers and judge in answers[key].labels
    ]
    return percent(sum(rows) / len(rows)) if rows else NOTHING


def _confusion(first: str, second: str, figures: Agreement) -> Table:
    """How often each pair of labels by two judges occurs."""
    down, across = confusion_labels(figures)
    rows = [["", *map(words, across)]]
    rows += [[words(a), *(count(figures.counts.get((a, b), 0)) for b in across)] for a in down]
    return plain_table(f"Labels of {first} (rows) and {second} (columns).", rows)
