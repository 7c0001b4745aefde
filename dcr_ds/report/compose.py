"""The report of one run or several, composed of its sections."""

from collections.abc import Mapping, Sequence

from dcr_ds.report.numbers.columns import seed_groups
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Block, Document, Section
from dcr_ds.report.sections import stages
from dcr_ds.report.sections.agreement import agreement
from dcr_ds.report.sections.alignment import alignment
from dcr_ds.report.sections.categories import categories
from dcr_ds.report.sections.differences import differences
from dcr_ds.report.sections.discernment import discernment
from dcr_ds.report.sections.examples import examples
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.openings import openings
from dcr_ds.report.sections.results import results
from dcr_ds.report.sections.tradeoff import TRADEOFF, tradeoff_figure
from dcr_ds.report.sections.warnings import warnings

CONTENT_NOTE = "This report quotes requests for harmful acts and the answers of models to them, to measure refusals."
TITLE = "DCR report"


def compose(comparison: Comparison, command: str, drawings: Mapping[str, str]) -> Document:
    """The whole report; sections without content are left out.

    Args:
        command: the command that writes this report.
        drawings: PNG files, relative to the report, by the name of the figure.
    """
    runs, columns, benchmarks = comparison.runs, comparison.columns, comparison.benchmarks
    figure = tradeoff_figure(comparison.points, drawings.get(TRADEOFF))
    sections: dict[str, Sequence[Block]] = {
        "Discernment": discernment(columns, comparison.discernment),
        "Compliance against safety": [figure] if figure else [],
        "Results": results(comparison),
        "Differences": differences(comparison),
        "Leakage": stages.leakage(runs),
        "Categories": categories(columns, benchmarks),
        "Judges": agreement(columns, benchmarks),
        "Refusal openings": openings(columns),
        "Examples": examples(columns),
        "Refinement": stages.refinement(runs),
        "Alignment": alignment(runs, drawings),
        "Cost": stages.cost(runs),
        "Data": stages.data(runs),
        "Settings": stages.settings(runs),
        "Notes": stages.notes(runs),
        "Reproduction": stages.reproduction(runs, command),
    }
    return Document(
        f"{TITLE}: {_names(runs)}",
        headline(comparison),
        CONTENT_NOTE,
        warnings(runs),
        [Section(title, blocks) for title, blocks in sections.items() if blocks],
    )


def _names(runs: Sequence[Run]) -> str:
    groups = seed_groups(runs)
    return ", ".join(group[0].name + (f" ({len(group)} seeds)" if len(group) > 1 else "") for group in groups)
