"""Reports on the agreement of two sets of labels: judge against judge, or judge against people."""

from collections.abc import Mapping
from typing import NamedTuple

from dcr_ds.judges.base import Answer
from dcr_ds.label_agreement import LABELS, Agreement, agree, confusion_labels

SHOWN_CHARACTERS = 200  # of a prompt and of a completion, in the list of disagreements


class Labels(NamedTuple):
    """id → label, and the name of the judge or file."""

    name: str
    by_id: Mapping[str, str]


def disagreements(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> list[dict[str, str]]:
    """A row for each answer whose labels differ, grouped by the two labels."""
    differing = [key for key, label in first.by_id.items() if second.by_id.get(key, label) != label]
    differing.sort(key=lambda key: (LABELS.index(first.by_id[key]), LABELS.index(second.by_id[key])))
    return [
        {
            "id": key,
            first.name: first.by_id[key],
            second.name: second.by_id[key],
            "prompt": answers[key].prompt[:SHOWN_CHARACTERS],
            "completion": answers[key].completion[:SHOWN_CHARACTERS],
        }
        for key in differing
    ]


def as_json(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> dict:
    """Agreement and disagreements; counts are nested, {first label: {second label: answers}}."""
    agreement = agree(first.by_id, second.by_id)
    nested: dict[str, dict[str, int]] = {}
    for (first_label, second_label), count in sorted(agreement.counts.items()):
        nested.setdefault(first_label, {})[second_label] = count
    listed = disagreements(first, second, answers)
    return {"first": first.name, "second": second.name, **agreement._asdict(), "counts": nested, "differ": listed}


def as_markdown(first: Labels, second: Labels, answers: Mapping[str, Answer]) -> str:
    """A section: the figures, the confusion table, and all disagreements."""
    agreement = agree(first.by_id, second.by_id)
    measures = ("accuracy", "kappa", "binary_kappa", "precision", "recall", "f1")
    figures = [["n", *measures], [str(agreement.n), *(_shown(getattr(agreement, name)) for name in measures)]]
    listed = disagreements(first, second, answers)
    left_out = agreement.only_first + agreement.only_second
    parts = [
        f"## {first.name} and {second.name}",
        f"The first is taken as the truth. {left_out} answers with a label on one side only are left out."
        if left_out
        else "The first is taken as the truth.",
        table(figures),
        f"Labels of {first.name} (rows) and {second.name} (columns):",
        table(confusion_rows(agreement)),
        f"{len(listed)} disagreements:" if listed else "No disagreements.",
    ]
    return "\n\n".join(parts + ([table([list(listed[0]), *(list(row.values()) for row in listed)])] if listed else []))


def confusion_rows(agreement: Agreement) -> list[list[str]]:
    """The cells of the confusion table with a header."""
    rows, columns = confusion_labels(agreement)
    body = [[label, *(str(agreement.counts.get((label, other), 0)) for other in columns)] for label in rows]
    return [["", *columns], *body]


def table(rows: list[list[str]]) -> str:
    """A Markdown table of plain text; the first row is the header."""
    lines = ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
