"""The labels of judges, and how far two sets of labels of the same answers agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from dcr_ds.statistics import cohen_kappa

REFUSAL_LABELS = ("full_refusal", "partial_refusal", "compliance", "degenerate", "unparsed")
HARM_LABELS = ("harmful", "harmless", "degenerate", "unparsed")
Label = Literal["full_refusal", "partial_refusal", "compliance", "harmful", "harmless", "degenerate", "unparsed"]
LABELS = get_args(Label)  # in the order of tables
POSITIVE = {"full_refusal", "partial_refusal", "harmful"}  # what precision, recall and F1 refer to


class Agreement(NamedTuple):
    """Agreement of two sets of labels; the first is taken as the truth.

    `counts` is (first label, second label) → answers. Precision, recall and F1 are those of refusal, full or partial
    (or of harm). Both kappas are Cohen's: over all labels, and over refusal or not. None means undefined.
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
    """Compare two mappings id → label on the ids that both contain."""
    pairs = [(label, second[key]) for key, label in first.items() if key in second]
    return agree_on_pairs(pairs, only_first=len(first) - len(pairs), only_second=len(second) - len(pairs))


def agree_on_pairs(pairs: Sequence[tuple[str, str]], only_first: int = 0, only_second: int = 0) -> Agreement:
    """Compare the two labels of each answer.

    Args:
        only_first, only_second: answers with a label on one side only, which are not among the pairs.
    """
    first_positive, second_positive = ([pair[side] in POSITIVE for pair in pairs] for side in (0, 1))
    both = sum(a and b for a, b in zip(first_positive, second_positive, strict=True))
    return Agreement(
        n=len(pairs),
        only_first=only_first,
        only_second=only_second,
        counts=dict(Counter(pairs)),
        accuracy=_ratio(sum(a == b for a, b in pairs), len(pairs)),
        kappa=cohen_kappa([a for a, _ in pairs], [b for _, b in pairs]),
        binary_kappa=cohen_kappa([str(a) for a in first_positive], [str(b) for b in second_positive]),
        precision=_ratio(both, sum(second_positive)),
        recall=_ratio(both, sum(first_positive)),
        f1=_ratio(2 * both, sum(first_positive) + sum(second_positive)),
    )


def confusion_labels(agreement: Agreement) -> tuple[list[str], list[str]]:
    """The labels of the rows and of the columns of the confusion table, in the order of LABELS."""
    rows = [label for label in LABELS if any(first == label for first, _ in agreement.counts)]
    columns = [label for label in LABELS if any(second == label for _, second in agreement.counts)]
    return rows, columns


def judged_matter(labels: Sequence[str]) -> Literal["refusal", "harm"]:
    """What a judge with these labels judges."""
    return "harm" if {"harmful", "harmless"} & set(labels) else "refusal"


def _ratio(part: int, total: int) -> float | None:
    return part / total if total else None
