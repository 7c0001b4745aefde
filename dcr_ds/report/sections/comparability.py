"""Remarks on what makes the columns of a report not comparable."""

from collections import Counter
from collections.abc import Sequence

from dcr_ds.recipe.layout import BASE
from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.read import BenchmarkResults, Run


def comparability(comparison: Comparison) -> list[str]:
    """What makes the columns not comparable: other prompts, judges, versions of a judge, seeds, limits or questions."""
    notes = [benchmark.note for benchmark in (*comparison.benchmarks, *comparison.attacks) if benchmark.note]
    columns = comparison.columns
    return [
        *notes,
        *_judge_versions(columns),
        *_seeds(columns),
        *_limits(comparison.runs),
        *_questions(columns),
        *_losses(columns),
    ]


def base_differences(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run whose base model answered under other settings than that of the first run."""
    with_base = [run for run in runs if BASE in run.models]
    remarks = []
    for run in with_base[1:]:
        first, other = with_base[0].models[BASE].benchmarks, run.models[BASE].benchmarks
        differing = [name for name in first if name in other and first[name].settings_hash != other[name].settings_hash]
        if differing:
            remarks.append(
                f"Base answered {', '.join(differing)} under other settings in {run.name} than in {with_base[0].name} "
                "(model, prompts, template or decoding differ), so the columns are not strictly comparable. The column "
                f"base is from {with_base[0].name}."
            )
    return remarks


def modes(columns: Sequence[Column]) -> list[str]:
    """A warning if models answered with different values of the chat template's variables."""
    values: dict[str, set[str]] = {}
    for column, benchmark in _judged(columns):
        variables = {f"{name}={value}" for name, value in benchmark.template_variables.items()}
        values.setdefault(column.title, set()).update(variables)
    if len({frozenset(variables) for variables in values.values()}) < 2:
        return []
    described = "; ".join(f"{title}: {', '.join(sorted(variables)) or 'none'}" for title, variables in values.items())
    return [
        f"The models answered in different modes of their chat templates, so do not compare them ({described}). "
        "Evaluate them with the same model.chat_template_kwargs."
    ]


def _judge_versions(columns: Sequence[Column]) -> list[str]:
    """A warning for each judge of which different versions judged the answers."""
    versions: dict[tuple[str, str | None], set[str]] = {}
    for _, benchmark in _judged(columns):
        for judge, score in ((benchmark.score.get("by_judge") or {}) | {benchmark.judge: benchmark.score}).items():
            key = judge, benchmark.score.get("attack")  # the opening of an attack is part of the version
            versions.setdefault(key, set()).add(str(score.get("judge_version", "earlier")))
    return [
        f"The answers were judged by different versions of {judge}, so do not compare them. Repeat the evaluations: "
        "answers are kept and judged again."
        for judge in dict.fromkeys(judge for (judge, _), names in versions.items() if len(names) > 1)
    ]


def _seeds(columns: Sequence[Column]) -> list[str]:
    """A sentence for each column of several seeds of which not all measured the same."""
    remarks = []
    for column in columns:
        measured = Counter(
            name
            for model in column.results
            for name in (*model.benchmarks, *model.ability, *(["the loss"] if model.general_loss else []))
        )
        seeds = len(column.runs)
        if fewer := [f"{name} ({count})" for name, count in measured.items() if count < seeds]:
            remarks.append(
                f"{column.title}: not all of the {seeds} seeds measured {', '.join(fewer)}; the figures are of those "
                "that did."
            )
    return remarks


def _limits(runs: Sequence[Run]) -> list[str]:
    """A warning if the answers of the runs were cut off at different lengths."""
    evaluated = [run for run in runs if any(model.benchmarks for model in run.models.values())]
    sections = (run.recipe.get("evaluate") or {} for run in evaluated)
    limits = dict.fromkeys(str(section["max_new_tokens"]) for section in sections if "max_new_tokens" in section)
    if len(limits) < 2:
        return []
    return [
        f"The longest answers differ (evaluate.max_new_tokens: {', '.join(limits)}), so the columns are not strictly "
        "comparable."
    ]


def _questions(columns: Sequence[Column]) -> list[str]:
    """A warning for each task of general ability whose questions differ."""
    hashes: dict[str, set[str]] = {}
    for column in columns:
        for model in column.results:
            for task, score in model.ability.items():
                hashes.setdefault(task, set()).add(score.get("rows_hash", f"{score['n']} questions"))
    return [
        f"{task}: the models were asked different questions, so the columns are not strictly comparable."
        for task, of_models in hashes.items()
        if len(of_models) > 1
    ]


def _losses(columns: Sequence[Column]) -> list[str]:
    """A warning if the losses are means over different tokens."""
    losses = (model.general_loss for column in columns for model in column.results if model.general_loss)
    if len({loss["tokens"] for loss in losses if "tokens" in loss}) < 2:
        return []
    return [
        "The losses on held-out answers are means over different tokens, as tokenizers, chat templates or "
        "conversations differ, so do not compare them."
    ]


def _judged(columns: Sequence[Column]) -> list[tuple[Column, BenchmarkResults]]:
    return [
        (column, benchmark)
        for column in columns
        for results in column.results
        for benchmark in results.benchmarks.values()
    ]
