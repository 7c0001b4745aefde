"""Warnings at the top of the report: what makes the results of a run doubtful."""

from collections.abc import Sequence

from dcr_ds.report.numbers.columns import run_titles
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.tables import shortened

MAX_WARNING = 500  # characters


def warnings(runs: Sequence[Run]) -> list[str]:
    """Warnings of the stages of each run, and of its check of the data for confounds."""
    lines = []
    for run, title in zip(runs, run_titles(runs), strict=True):
        prefix = f"{title}: " if len(runs) > 1 else ""
        summaries = [summary for summary in (run.refine, run.control, run.align) if summary]
        messages = [message for summary in summaries for message in summary.get("warnings") or []]
        messages += run.environment.get("warnings", [])
        lines += [_sentence(prefix + shortened(message, MAX_WARNING)) for message in messages]
    return list(dict.fromkeys(lines))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "…", "!", "?")) else f"{text}."
