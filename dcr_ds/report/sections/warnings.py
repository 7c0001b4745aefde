"""Warnings at the top of the report: what makes the results of a run doubtful."""

from collections.abc import Sequence

from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL, REFINED
from dcr_ds.report.numbers.columns import run_titles, trained_titles
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.tables import shortened

MAX_WARNING = 500  # characters


def warnings(runs: Sequence[Run]) -> list[str]:
    """What an unfinished evaluation lacks; warnings of the stages of each run, and of its check for confounds."""
    lines = []
    for run, title in zip(runs, run_titles(runs), strict=True):
        prefix = f"{title}: " if len(runs) > 1 else ""
        summaries = [summary for summary in (run.refine, run.control, run.align) if summary]
        messages = unfinished(run)
        messages += [message for summary in summaries for message in summary.get("warnings") or []]
        messages += run.environment.get("warnings", [])
        lines += [_sentence(prefix + shortened(message, MAX_WARNING)) for message in messages]
    return list(dict.fromkeys(lines))


def unfinished(run: Run) -> list[str]:
    """What the evaluation of a run lacks, if it has begun and is not finished."""
    expected = run.environment.get("benchmarks", []) if run.models and "evaluate" in run.recipe["stages"] else []
    titles, lacking = trained_titles(run) if run.control else {}, []
    for model in _evaluated(run):
        measured = run.models[model].benchmarks if model in run.models else {}
        names = [name for name in expected if name not in measured]
        title = titles.get(model, model) if run.kind else run.name
        lacking += [title if len(names) == len(expected) else f"{title} on {', '.join(names)}"] if names else []
    if not lacking:
        return []
    return [
        f"the evaluation is not finished; repeat its command, which keeps what exists. Missing: {'; '.join(lacking)}"
    ]


def _evaluated(run: Run) -> list[str]:
    """The models of a run that exist and that its evaluation is of."""
    summaries = {REFINED: run.refine, CONTROL: run.control, ALIGNED: run.align}
    chosen = (run.recipe.get("evaluate") or {}).get("models", [])
    is_of_one_model = run.recipe["stages"] == ["evaluate"] and chosen == [ALIGNED]  # by `dcr-ds evaluate`
    return [model for model in chosen if is_of_one_model or summaries.get(model, model == BASE)]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "…", "!", "?")) else f"{text}."
