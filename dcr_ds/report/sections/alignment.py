"""The section on the course of the alignment: refusal log-odds of three kinds of prompts, step by step."""

from collections.abc import Mapping, Sequence

from dcr_ds.report.numbers.alignment import RefusalCurve, refusal_curves
from dcr_ds.report.numbers.columns import run_titles, trained_titles
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.curves import curves_svg
from dcr_ds.report.render.document import Block, Figure, Paragraph
from dcr_ds.report.render.tables import shortened, signed, words

MAX_REASON = 400  # characters
EXPLANATION = (
    "Mean refusal log-odds of fixed held-out prompts. Above 0 an answer opens with a refusal more often than not. "
    "Discernment shows as a growing distance between toxic prompts and the other two."
)


def alignment(runs: Sequence[Run], drawings: Mapping[str, str]) -> list[Block]:
    """A figure per run whose alignment measured log-odds, and why each alignment ended; empty if none did.

    Args:
        drawings: PNG files by the name of the figure.
    """
    blocks: list[Block] = []
    for number, (run, title) in enumerate(zip(runs, run_titles(runs), strict=True)):
        curves = refusal_curves(run)
        if curves:
            name = figure_name(number)
            caption = f"Refusal log-odds during alignment{f', {title}' if len(runs) > 1 else ''}. {EXPLANATION}"
            blocks.append(Figure(name, caption, f"{described(curves)}.", curves_svg(curves, name), drawings.get(name)))
            blocks += _ends(run)
    return blocks


def figure_name(number: int) -> str:
    """The name of the figure of the run with this number, from 0."""
    return f"alignment-{number + 1}"


def described(curves: Sequence[RefusalCurve]) -> str:
    """The start and the end of every curve, in words."""
    return "; ".join(
        f"{curve.model}, {words(curve.category)} prompts: "
        + ", ".join(f"{signed(value, 1)} at step {step}" for step, value in (curve.points[0], curve.points[-1]))
        for curve in curves
    )


def _ends(run: Run) -> list[Block]:
    titles = trained_titles(run)
    return [
        Paragraph(f"Alignment of {titles[model]} ended: {shortened(summary['stopped_because'], MAX_REASON)}.")
        for model, summary in (("control", run.control), ("aligned", run.align))
        if summary and summary.get("stopped_because")
    ]
