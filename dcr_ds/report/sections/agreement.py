"""The section on judges: the rates by judge, their agreement (kappa), and how their labels differ."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.numbers.read import Answer
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table, plain_table
from dcr_ds.report.render.tables import NOTHING, count, number, percent, words
from dcr_ds.statistics import cohen_kappa

HARM = {"harmful", "harmless"}  # labels of judges of harm, which do not judge refusal
LABELS = ("full_refusal", "partial_refusal", "compliance", "harmful", "harmless", "degenerate", "unparsed")


def agreement(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Block]:
    """Tables of the judges; empty if there is only one."""
    columns = [column for column in columns if column.is_judged]
    answers = [answer for column in columns for answer in _answers(column)]
    judges = sorted({judge for answer in answers for judge in answer.labels})
    if len(judges) < 2:
        return []
    pairs = [
        (first, second, labels)
        for first, second in combinations(judges, 2)
        if (labels := [(a.labels[first], a.labels[second]) for a in answers if {first, second} <= set(a.labels)])
        and _judges_harm(labels, 0) == _judges_harm(labels, 1)
    ]
    rows = [["", "answers", "same label", "Cohen's kappa"]]
    for first, second, labels in pairs:
        same = sum(a == b for a, b in labels) / len(labels)
        kappa = cohen_kappa(*(list(side) for side in zip(*labels, strict=True)))
        rows.append([f"{first} and {second}", count(len(labels)), percent(same), number(kappa, 2)])
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


def _judges_harm(labels: Sequence[tuple[str, str]], side: int) -> bool:
    return any(pair[side] in HARM for pair in labels)


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
    wanted = [
        answer.labels[judge] in counted
        for model in column.results
        if benchmark.name in model.benchmarks and (counted := model.benchmarks[benchmark.name].counts(judge))
        for answer in model.benchmarks[benchmark.name].answers.values()
        if judge in answer.labels
    ]
    return percent(sum(wanted) / len(wanted)) if wanted else NOTHING


def _confusion(first: str, second: str, labels: Sequence[tuple[str, str]]) -> Table:
    """How often each pair of labels by two judges occurs."""
    counts = Counter(labels)
    down = [label for label in LABELS if any(a == label for a, _ in counts)]
    across = [label for label in LABELS if any(b == label for _, b in counts)]
    rows = [["", *map(words, across)]]
    rows += [[words(a), *(count(counts[a, b]) for b in across)] for a in down]
    return plain_table(f"Labels of {first} (down) and {second} (across).", rows)
