"""How far two sets of labels of the same answers agree: judge against judge, or judge against people."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from dcr_ds.judges.base import HARM_LABELS, REFUSAL_LABELS, Answer
from dcr_ds.statistics import cohen_kappa

LABELS = tuple(dict.fromkeys((*REFUSAL_LABELS, *HARM_LABELS)))  # in the order of tables
POSITIVE = {"full_refusal", "partial_refusal", "harmful"}  # what precision, recall and F1 are of
SHOWN_CHARACTERS = 200  # of a prompt and of a completion, in the list of disagreements


class Labels(NamedTuple):
    """id → label, and whose they are."""

    name: str
    by_id: Mapping[str, str]


class Agreement(NamedTuple):
    """Agreement on the answers that both have labelled; the first side is taken as the truth.

    `counts` is (label of the first, label of the second) → answers. Precision, recall and F1 are of refusal, full or
    partial (or of harm); kappas are Cohen's, over all labels and over refusal or not. None: there is none.
    """

    n: int
    only_first: int
    only_second: int
    counts: dict[tuple[str, str], int]
    accuracy: float | None
    kappa: float | None
    binary_kappa: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def agree(first: Mapping[str, str], second: Mapping[str, str]) -> Agreement:
    """Compare two maps id → label on the ids they share."""
    pairs = [(label, second[key]) for key, label in first.items() if key in second]
    true, found = ([pair[side] in POSITIVE for pair in pairs] for side in (0, 1))
    both = sum(a and b for a, b in zip(true, found, strict=True))
    return Agreement(
        n=len(pairs),
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        counts=dict(Counter(pairs)),
        accuracy=_ratio(sum(a == b for a, b in pairs), len(pairs)),
        kappa=cohen_kappa([a for a, _ in pairs], [b for _, b in pairs]),
        binary_kappa=cohen_kappa([str(a) for a in true], [str(b) for b in found]),
        precision=_ratio(both, sum(found)),
        recall=_ratio(both, sum(true)),
        f1=_ratio(2 * both, sum(true) + sum(found)),
    )


def disagreements(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> list[dict[str, str]]:
    """A row for each answer whose labels differ, those that differ in the same way together."""
    one, other = first.by_id, second.by_id
    differing = [key for key, label in one.items() if key in other and other[key] != label]
    differing.sort(key=lambda key: (LABELS.index(one[key]), LABELS.index(other[key])))
    return [
        {
            "id": key,
            first.name: one[key],
            second.name: other[key],
            "prompt": answers[key].prompt[:SHOWN_CHARACTERS],
            "completion": answers[key].completion[:SHOWN_CHARACTERS],
        }
        for key in differing
    ]


def as_json(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> dict:
    """Agreement and disagreements; counts are nested, {label of the first: {label of the second: answers}}."""
    agreement = agree(first.by_id, second.by_id)
    nested: dict[str, dict[str, int]] = {}
    for (one, other), count in sorted(agreement.counts.items()):
        nested.setdefault(one, {})[other] = count
    listed = disagreements(first, second, answers)
    return {"first": first.name, "second": second.name, **agreement._asdict(), "counts": nested, "differ": listed}


def as_markdown(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> str:
    """A section: the figures, the confusion table, and every disagreement."""
    agreement = agree(first.by_id, second.by_id)
    measures = ("accuracy", "kappa", "binary_kappa", "precision", "recall", "f1")
    figures = [["n", *measures], [str(agreement.n), *(_shown(getattr(agreement, name)) for name in measures)]]
    listed = disagreements(first, second, answers)
    left_out = agreement.only_first + agreement.only_second
    parts = [
        f"## {first.name} and {second.name}",
        f"The first is taken as the truth. {left_out} answers have a label on one side only and are left out."
        if left_out
        else "The first is taken as the truth.",
        table(figures),
        f"Labels of {first.name} (down) and {second.name} (across):",
        table(confusion_rows(agreement)),
        f"{len(listed)} disagreements:" if listed else "No disagreement.",
    ]
    return "\n\n".join(parts + ([table([list(listed[0]), *(list(row.values()) for row in listed)])] if listed else []))


def confusion_rows(agreement: Agreement) -> list[list[str]]:
    """Rows of cells with a header: labels of the first down, of the second across."""
    down = [label for label in LABELS if any(a == label for a, _ in agreement.counts)]
    across = [label for label in LABELS if any(b == label for _, b in agreement.counts)]
    body = [[label, *(str(agreement.counts.get((label, other), 0)) for other in across)] for label in down]
    return [["", *across], *body]


def table(rows: list[list[str]]) -> str:
    """A Markdown table of plain text, whose first row is the header."""
    lines = ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
