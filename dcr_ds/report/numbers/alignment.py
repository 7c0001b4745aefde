"""Refusal log-odds during alignment, of the control and the aligned model."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.recipe.layout import ALIGNED, CONTROL
from dcr_ds.report.numbers.columns import trained_titles
from dcr_ds.report.numbers.read import Run

PREFIX = "log_odds_"  # of the fields of a metrics row, before the category


@dataclass(frozen=True)
class RefusalCurve:
    """Mean refusal log-odds of the prompts of one category over the steps of one model's alignment.

    points: (step, log-odds), at least one; step 0 is before the alignment.
    """

    model: str
    category: str
    points: Sequence[tuple[int, float]]


def refusal_curves(run: Run) -> list[RefusalCurve]:
    """The curves of a run, those of the control first; empty if nothing was measured during alignment."""
    titles = trained_titles(run)
    curves = []
    for model, rows in ((CONTROL, run.control_refusals), (ALIGNED, run.align_refusals)):
        names = dict.fromkeys(name for row in rows for name in row if name.startswith(PREFIX) and row[name] is not None)
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
            curves.append(RefusalCurve(titles[model], name.removeprefix(PREFIX), points))
    return curves
