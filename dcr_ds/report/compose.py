"""The report of one run or several, put together from what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL
from dcr_ds.report.numbers.columns import Column, reference_column, result_columns, seed_groups
from dcr_ds.report.numbers.discernment import Discernment, measured_discernment
from dcr_ds.report.numbers.measured import Benchmark, measured_benchmarks
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Block, Document, Paragraph, Section, Table
from dcr_ds.report.render.figures import ModelPoint, tradeoff_figure, tradeoff_points
from dcr_ds.report.render.tables import percent
from dcr_ds.report.sections import stages
from dcr_ds.report.sections.agreement import agreement
from dcr_ds.report.sections.discernment import discernment
from dcr_ds.report.sections.examples import examples
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.results import category_differences_table, category_tables, differences_table, results_table

WARNING = (
    "This report quotes requests for harmful acts and what models answered to them. It is there to measure refusals."
)


@dataclass(frozen=True)
class Comparison:
    """Runs with the models that a report of them compares and what was measured on these."""

    runs: Sequence[Run]
    columns: list[Column]
    benchmarks: list[Benchmark]
    discernment: list[Discernment]

    @property
    def results(self) -> Table:
        return results_table(self.columns, self.benchmarks)

    @property
    def points(self) -> list[ModelPoint]:
        return tradeoff_points(self.columns, self.benchmarks, self.discernment)


def compare(runs: Sequence[Run]) -> Comparison:
    """Lay runs side by side.

    Raises:
        UserError: they were asked different prompts under the name of one benchmark, none in common.
    """
    columns = result_columns(runs)
    benchmarks = measured_benchmarks(columns)
    return Comparison(runs, columns, benchmarks, measured_discernment(columns, benchmarks))


def compose(comparison: Comparison, command: str, png: str | None) -> Document:
    """The whole report; sections of which the runs hold nothing are left out.

    Args:
        command: that makes this report.
        png: the figure's file, relative to the report; None where it could not be drawn.
    """
    runs, columns, benchmarks = comparison.runs, comparison.columns, comparison.benchmarks
    figure = tradeoff_figure(comparison.points, png)
    sections: dict[str, Sequence[Block]] = {
        "Discernment": discernment(columns, comparison.discernment),
        "Compliance against safety": [figure] if figure else [],
        "Results": _results(comparison),
        "Differences": _differences(columns, benchmarks),
        "Leakage": stages.leakage(runs),
        "Categories": _categories(columns, benchmarks),
        "Judges": agreement(columns, benchmarks),
        "Examples": examples(columns),
        "Refinement": stages.refinement(runs),
        "Cost": stages.cost(runs),
        "Data": stages.data(runs),
        "Settings": stages.settings(runs),
        "Notes": stages.notes(runs),
        "Reproduction": stages.reproduction(runs, command),
    }
    return Document(
        f"DCR report: {_names(runs)}",
        headline(columns, benchmarks, comparison.discernment),
        WARNING,
        [Section(title, blocks) for title, blocks in sections.items() if blocks],
    )


def _names(runs: Sequence[Run]) -> str:
    seeds = [(group[0].name, f" ({len(group)} seeds)" if len(group) > 1 else "") for group in seed_groups(runs)]
    return ", ".join(name + of for name, of in seeds)


def missing(runs: Sequence[Run]) -> str:
    """Which runs were not evaluated, and what does it."""
    names = ", ".join(run.name for run in unevaluated(runs))
    return f"Not evaluated yet: {names}. The evaluate stage of the recipe does it."


def unevaluated(runs: Sequence[Run]) -> list[Run]:
    """The runs whose columns are empty: nothing was measured, or of several runs not on the aligned model."""
    return [run for run in runs if not run.models or (len(runs) > 1 and ALIGNED not in run.models)]


def _results(comparison: Comparison) -> list[Block]:
    runs, benchmarks = comparison.runs, comparison.benchmarks
    if not comparison.results.groups:
        return [Paragraph(missing(runs))]
    judges = sorted({benchmark.judge for benchmark in benchmarks})
    seeds = any(len(column.runs) > 1 for column in comparison.columns)
    interval = (
        "of several seeds the mean over them, with Student's t interval over seeds and prompts; of one seed the 95% "
        "Wilson interval over the n prompts, which says nothing of the spread over seeds"
        if seeds
        else "the 95% Wilson interval over the n prompts of one run, which says nothing of the spread over seeds"
    )
    told = (
        f"↑ higher is better, ↓ lower is better. In brackets or below: {interval}; for the loss, a mean over answer "
        f"tokens, its change against base. Judged by {', '.join(judges) or 'nobody yet'}. An empty answer is "
        "degenerate: neither compliance nor refusal, so it lowers either rate."
    )
    remarks = [benchmark.note for benchmark in benchmarks if benchmark.note] + _base_differences(runs)
    remarks += [told, *_advice(runs), *([missing(runs)] if unevaluated(runs) else [])]
    return [comparison.results, *map(Paragraph, remarks)]


def _differences(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Block]:
    table, reference = differences_table(columns, benchmarks), reference_column(columns)
    if table is None or reference is None:
        return []
    told = (
        f"Each model's rate less that of {reference.title}, on the same prompts: percentile bootstrap "
        "of 10,000 resamples of the prompts, both answers to a prompt kept together; between several seeds Student's t "
        "over seeds and prompts. p is McNemar's exact test, adjusted by Holm for the benchmarks of a column. The "
        "intervals are not adjusted: of twenty differences that are none, one interval leaves out zero by chance."
    )
    return [table, Paragraph(told)]


def _categories(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Block]:
    tables = category_tables(columns, benchmarks)
    if not tables:
        return []
    told = (
        "Below each bar the 95% Wilson interval; the number of prompts is beside the name. Differences are paired, "
        "with 95% intervals as above. With few prompts and many categories some differ by chance: a place to look at, "
        "no finding."
    )
    differences = {one.title: category_differences_table(columns, one) for one in benchmarks}
    pairs = [(table, differences[table.caption]) for table in tables]
    return [Paragraph(told), *(table for pair in pairs for table in pair if table)]


def _advice(runs: Sequence[Run]) -> list[str]:
    """What is to be compared with what; nothing on models that no run of these trained."""
    kinds = {run.kind for run in runs}
    if not kinds & {"DCR", "STL"}:
        return []
    base = next((run.models[BASE] for run in runs if BASE in run.models), None)
    refusals = [
        f"{percent(results.score['value'])} of {name}"
        for name, results in (base.benchmarks.items() if base else ())
        if results.score["metric"] == "refusal_rate"
    ]
    here = f" (here it refuses {', '.join(refusals)})" if refusals else ""
    why = f"Base is no yardstick for over-refusal: it may comply with much because it refuses little{here}. "
    if kinds == {"STL", "DCR"} or any(CONTROL in run.models for run in runs):
        return [why + "Compare DCR with STL, the same without refinement, at equal refusal of toxic prompts."]
    return [
        why + "Compare DCR with STL, the same recipe without the refine stage: set control: stl, or report both runs."
    ]


def _base_differences(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run whose base model answered under other settings than the first run's."""
    with_base = [run for run in runs if BASE in run.models]
    remarks = []
    for run in with_base[1:]:
        first, other = with_base[0].models[BASE].benchmarks, run.models[BASE].benchmarks
        differing = [name for name in first if name in other and first[name].settings_hash != other[name].settings_hash]
        if differing:
            remarks.append(
                f"Base answered {', '.join(differing)} under other settings in {run.name} than in {with_base[0].name} "
                "(model, prompts, template or decoding differ), so the columns are not strictly comparable. Base is "
                f"shown as {with_base[0].name} measured it."
            )
    return remarks
