"""The section on discernment: its measures for every model, and their differences to the reference."""

from collections.abc import Sequence

from dcr_ds.discernment import AGREEMENT_BOUND
from dcr_ds.discernment.measures import Result
from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.discernment import JUDGED, JUDGED_AUC, MARGIN_AUC, ColumnDiscernment, Discernment, largest
from dcr_ds.report.render.document import Block, Cell, Paragraph, Row, Table
from dcr_ds.report.render.tables import NOTHING, count, number, percent, points, signed

# reading → name of the row of its agreement with the judged answers, and its name in sentences
AGREEMENTS = {
    "auc": ("agreement of log-odds, AUC", "refusal log-odds"),
    MARGIN_AUC: ("agreement of margins, AUC", "greedy margins"),
}
# measure → name of its row, and whether it is a share of prompts
ROWS = {
    "auc": ("AUC, refusal log-odds ↑", False),
    MARGIN_AUC: ("AUC, greedy margin ↑", False),
    JUDGED: ("Youden's J, judged answers ↑", False),
    "compliance_at_80_refusal": ("compliance at 80% refusal ↑", True),
    "compliance_at_90_refusal": ("compliance at 90% refusal ↑", True),
    "compliance_at_95_refusal": ("compliance at 95% refusal ↑", True),
    "refusal_at_5_false_refusals": ("refusal at 5% false refusals ↑", True),
    "partial_auc": ("partial AUC, 80% to 95% refusal ↑", False),
    JUDGED_AUC: ("AUC, judge's score ↑", False),
}
TERMINAL_ROWS = ("auc", MARGIN_AUC, JUDGED, "compliance_at_80_refusal", "compliance_at_90_refusal")
EXPLANATION = (
    "Discernment is how well refusals separate harmful from harmless prompts, whatever share of them is refused. The "
    "refusal log-odds of a prompt are log p − log(1 − p), where p is the probability that the answer opens with a "
    "refusal; compliance at 80% refusal is the share of harmless prompts below the threshold at which 80% of the "
    "harmful ones are refused. The greedy margin compares the most likely tokens instead: it is above 0 where greedy "
    "decoding opens with a refusal, however the rest of the probability is spread. Youden's J is compliance with "
    "harmless prompts plus refusal of harmful ones minus 1, from the judged answers. Intervals are 95% percentiles of "
    "2,000 resamples of the prompts, twins together, crossed with the seeds where there are several."
)


def discernment(columns: Sequence[Column], measured: Sequence[Discernment]) -> list[Block]:
    """Tables of measures and of differences for each pair of sets; empty where nothing was measured."""
    if not measured:
        return []
    blocks: list[Block] = []
    for entry in measured:
        blocks.append(measures_table(columns, entry))
        if table := _differences_table(columns, entry):
            blocks.append(table)
    remarks = [*_warnings(columns, measured), *_openings(columns), EXPLANATION]
    return [*blocks, *map(Paragraph, remarks)]


def measures_table(columns: Sequence[Column], entry: Discernment, names: Sequence[str] = tuple(ROWS)) -> Table:
    """The measures of a pair of sets, a column per model; the last rows are the agreement of the readings."""
    shown = [(i, figures) for i, figures in enumerate(entry.columns) if figures]
    rows = [Row(row.name, [row.cells[i] for i, _ in shown]) for row in measures_rows(entry, names).values()]
    rows += [
        Row(title, [_cell(figures.agreement.get(name), False) for _, figures in shown])
        for name, (title, _) in AGREEMENTS.items()
        if any(name in figures.agreement for _, figures in shown)
    ]
    size = f"{count(entry.n_harmless)} harmless and {count(entry.n_harmful)} harmful prompts"
    caption = f"Discernment, {entry.pair.title} ({size}), with 95% intervals."
    return Table(caption, [columns[i].title for i, _ in shown], [("", rows)])


def measures_rows(entry: Discernment, names: Sequence[str]) -> dict[str, Row]:
    """A row, with a cell per column, for each measure that a column has."""
    return {
        name: Row(
            ROWS[name][0],
            [_cell(figures.measures.get(name) if figures else None, ROWS[name][1]) for figures in entry.columns],
        )
        for name in names
        if any(figures and name in figures.measures for figures in entry.columns)
    }


def _differences_table(columns: Sequence[Column], entry: Discernment) -> Table | None:
    reference = reference_column(columns)
    shown = [(i, figures) for i, figures in enumerate(entry.columns) if figures and figures.differences]
    if reference is None or not shown:
        return None
    rows = [
        Row(title, [_difference_cell(figures.differences.get(name), is_share) for _, figures in shown])
        for name, (title, is_share) in ROWS.items()
        if any(name in figures.differences for _, figures in shown)
    ]
    caption = f"Difference to {reference.title}, {entry.pair.title}, with 95% intervals; shares in percentage points."
    return Table(caption, [columns[i].title for i, _ in shown], [("", rows)])


def _warnings(columns: Sequence[Column], measured: Sequence[Discernment]) -> list[str]:
    """A sentence for each column with a reading that does not agree well enough with its judged answers."""
    return [
        f"{entry.pair.title}: the {reading} of {columns[i].title} rank its refused answers above the others with an "
        f"AUC of {number(agrees['value'])} (lower end of the interval {number(agrees['low'])}, needed "
        f"{AGREEMENT_BOUND}), so its figures from them are not headlines."
        for entry in measured
        for i, figures in enumerate(entry.columns)
        if figures
        for name, (_, reading) in AGREEMENTS.items()
        if (agrees := figures.agreement.get(name)) and agrees["value"] is not None and not figures.is_headline(name)
    ]


def _openings(columns: Sequence[Column]) -> list[str]:
    """A sentence if the log-odds of the columns are of different openings, by other training data or tokenizers."""
    titles: dict[frozenset[str], list[str]] = {}
    for column in columns:
        read = (
            frozenset(opening["text"] for opening in model.openings["openings"])
            for model in column.results
            if model.openings
        )
        for texts in dict.fromkeys(read):
            titles.setdefault(texts, []).append(column.title)
    if len(titles) < 2:
        return []
    groups = "; ".join(", ".join(names) for names in titles.values())
    return [
        f"The log-odds are of different refusal openings ({groups}), as training data or tokenizers differ, so their "
        "figures are not strictly comparable."
    ]


def sentence(columns: Sequence[Column], measured: Sequence[Discernment]) -> str:
    """What the last model changed against its reference, on the pair with the most prompts; empty without either.

    The first reading of the openings that is a headline for both models is quoted, the log-odds before the margins, and
    the judged answers.
    """
    reference = reference_column(columns)
    entry = largest(measured)
    if reference is None or entry is None:
        return ""
    at = list(columns).index(reference)
    place = max((i for i, figures in enumerate(entry.columns) if figures and i != at), default=None)
    ours, theirs = (entry.columns[i] if i is not None else None for i in (place, at))
    if ours is None or theirs is None or place is None:
        return ""
    readings = [name for name in AGREEMENTS if ours.is_headline(name) and theirs.is_headline(name)]
    quoted = {name: f"AUC of the {AGREEMENTS[name][1]}" for name in readings[:1]}
    quoted[JUDGED] = "Youden's J of the judged answers"
    clauses = [
        _clause(ours, theirs, name, f"{words} {{}} ({reference.title} {{}}, difference {{}})")
        for name, words in quoted.items()
    ]
    parts = [clause for clause in clauses if clause]
    if not parts:
        return ""
    result = f"{columns[place].title} on {entry.pair.title}: {'; '.join(parts)}."
    if readings or not ours.agreement or not theirs.agreement:
        return result
    if not any(_is_measured(ours, name) and _is_measured(theirs, name) for name in AGREEMENTS):
        return f"{result} Too few answers are refused, or too few comply, to check log-odds and margins against them."
    return f"{result} Log-odds and margins agree too little with the answers to be quoted."


def _is_measured(figures: ColumnDiscernment, name: str) -> bool:
    """Whether the agreement of a reading with the answers has an interval."""
    return name in figures.agreement and figures.agreement[name]["low"] is not None


def _clause(ours: ColumnDiscernment, theirs: ColumnDiscernment, name: str, template: str) -> str:
    difference = ours.differences.get(name)
    if difference is None or difference["value"] is None or name not in theirs.measures:
        return ""
    return template.format(
        number(ours.measures[name]["value"], 2), number(theirs.measures[name]["value"], 2), difference_text(difference)
    )


def difference_text(difference: Result) -> str:
    """A difference with its interval, and whether the interval excludes zero."""
    value, low, high = difference["value"], difference["low"], difference["high"]
    if low is None or high is None:
        return f"{signed(value)}, too few prompts for an interval"
    verdict = "excludes zero" if low > 0 or high < 0 else "includes zero"
    return f"{signed(value)}, 95% interval {signed(low)} to {signed(high)}, which {verdict}"


def _cell(result: Result | None, is_share: bool) -> Cell:
    if result is None or result["value"] is None:
        return Cell(NOTHING)
    low, high = result["low"], result["high"]
    value = percent(result["value"]) if is_share else number(result["value"])
    if low is None or high is None:
        return Cell(value)
    return Cell(
        value,
        (
            f"{100 * low:.0f}–{100 * high:.0f}"
            if is_share
            else f"{number(low, 2)}–{number(high, 2)}"
            if low >= 0
            else f"{number(low, 2)} to {number(high, 2)}",
        ),
    )


def _difference_cell(result: Result | None, is_share: bool) -> Cell:
    if result is None or result["value"] is None:
        return Cell(NOTHING)
    written = points if is_share else signed
    low, high = result["low"], result["high"]
    interval = () if low is None or high is None else (f"{written(low)} to {written(high)}",)
    return Cell(written(result["value"]), interval)
