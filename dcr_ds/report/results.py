"""The table of results: benchmarks and general loss, one column a model or a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.report.read import ModelResults, Run, settings_hash
from dcr_ds.report.tables import NOTHING, count, number, percent

WANTED = {"comply": "compliance ↑", "refuse": "refusal ↑"}


@dataclass(frozen=True)
class Column:
    """One model of one run; what was not measured shows as a dash."""

    title: str
    run: Run
    model: str

    @property
    def results(self) -> ModelResults | None:
        return self.run.models.get(self.model)


def result_columns(runs: Sequence[Run]) -> list[Column]:
    """The models of one run; or, of several runs, base once and then the aligned model of each."""
    if len(runs) == 1:
        return [Column(model, runs[0], model) for model in runs[0].models]
    base = next((run for run in runs if "base" in run.models), None)
    columns = [Column("base", base, "base")] if base else []
    return columns + [Column(title, run, "aligned") for title, run in zip(run_titles(runs), runs, strict=True)]


def run_titles(runs: Sequence[Run]) -> list[str]:
    """STL or DCR where there is one of the kind, else names of runs, or folders where names are equal."""
    kinds, names = Counter(run.kind for run in runs), Counter(run.name for run in runs)
    return [
        run.kind if run.kind and kinds[run.kind] == 1 else run.name if names[run.name] == 1 else str(run.folder)
        for run in runs
    ]


def result_rows(columns: Sequence[Column]) -> list[list[str]]:
    """Header, a row a benchmark (and one of degenerate answers if there are any), and the general loss."""
    rows = [["", "n", *(column.title for column in columns)]]
    for benchmark, wanted in _benchmarks(columns):
        scores = [column.results.scores.get(benchmark) if column.results else None for column in columns]
        sizes = {score["n"] for score in scores if score}
        one_size = len(sizes) == 1
        cells = [_score_cell(score, show_n=not one_size) for score in scores]
        size = count(sizes.pop()) if one_size else ""
        rows.append([f"{benchmark}: {WANTED[wanted]}", size, *cells])
        for what in ("degenerate", "unparsed"):
            if any(score[what] for score in scores if score):
                counts = [count(score[what]) if score else NOTHING for score in scores]
                rows.append([f"{benchmark}: {what}", size, *counts])
    losses = [column.results.general_loss if column.results else None for column in columns]
    if any(losses):
        sizes = {loss["n"] for loss in losses if loss}
        cells = [_loss_cell(column, columns) for column in columns]
        rows.append(["loss on held-out answers ↓", count(sizes.pop()) if len(sizes) == 1 else "", *cells])
    return rows


def loss_change(loss: float, base: float) -> str:
    return f"{100 * (loss / base - 1):+.1f}%"


def base_differences(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run whose base model answered under other settings than the first run's."""
    with_base = [run for run in runs if "base" in run.models]
    notes = []
    for run in with_base[1:]:
        first, other = with_base[0].models["base"], run.models["base"]
        differing = [
            benchmark
            for benchmark in first.scores
            if benchmark in other.scores and settings_hash(first, benchmark) != settings_hash(other, benchmark)
        ]
        if differing:
            notes.append(
                f"Base answered {', '.join(differing)} under other settings in {run.name} than in "
                f"{with_base[0].name} (model, prompts, template or decoding differ), so the columns are not "
                f"strictly comparable. Base is shown as {with_base[0].name} measured it."
            )
    return notes


def _benchmarks(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Names of all benchmarks and what is wanted; those that want compliance first."""
    found = {
        (score["wanted"], name): None
        for column in columns
        if column.results
        for name, score in column.results.scores.items()
    }
    return [(name, wanted) for wanted, name in sorted(found)]


def _score_cell(score: dict | None, show_n: bool) -> str:
    if score is None:
        return NOTHING
    cell = f"{percent(score['value'])} ({100 * score['low']:.1f}–{100 * score['high']:.1f})"
    return f"{cell}, n={score['n']}" if show_n else cell


def _loss_cell(column: Column, columns: Sequence[Column]) -> str:
    loss = column.results and column.results.general_loss
    if not loss:
        return NOTHING
    cell = number(loss["loss"])
    base = column.run.models.get("base") or next((c.results for c in columns if c.model == "base"), None)
    if column.model == "base" or not base or not base.general_loss:
        return cell
    return f"{cell} ({loss_change(loss['loss'], base.general_loss['loss'])})"
