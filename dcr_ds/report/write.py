"""Write the report of run folders: Markdown, an HTML page, figures, and the model cards of a single run."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from textwrap import wrap

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.recipe.layout import CONTROL
from dcr_ds.report.card import write_cards
from dcr_ds.report.compose import compose
from dcr_ds.report.numbers.alignment import refusal_curves
from dcr_ds.report.numbers.comparison import Comparison, compare
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.render.html import html_page
from dcr_ds.report.render.markdown import markdown_text, table_rows
from dcr_ds.report.render.png import can_draw, draw_categories, draw_curves, draw_tradeoff
from dcr_ds.report.render.tables import text_table
from dcr_ds.report.sections.alignment import figure_name
from dcr_ds.report.sections.categories import category_tables
from dcr_ds.report.sections.comparability import comparability
from dcr_ds.report.sections.discernment import TERMINAL_ROWS, measures_table
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.results import missing, results_table
from dcr_ds.report.sections.tradeoff import TRADEOFF
from dcr_ds.report.sections.warnings import warnings

TERMINAL_WIDTH = 100


def write_report(folders: Sequence[Path], out: Path) -> str:
    """Write the report of run folders to `out`, with the HTML page and figures/ next to it.

    For a single run, also write the cards of its models.

    Returns:
        What a terminal shows of it; see `terminal_table`.

    Raises:
        UserError: a folder is not a run folder, a file in it is broken, or two runs have no prompt in common.
    """
    if out.suffix != ".md":  # never recipe.yaml or metrics.jsonl of a run
        raise UserError(
            f"--out {out}: must name the Markdown file, such as {out.stem}.md; the HTML page is written next to it"
        )
    refuse_repeated(folders)
    comparison = compare([read_run(folder) for folder in folders])
    command = f"dcr-ds report {' '.join(quote(str(folder)) for folder in folders)} --out {quote(str(out))}"
    document = compose(comparison, command, _draw(comparison, out))
    write_atomically(out, markdown_text(document))
    write_atomically(out.with_suffix(".html"), html_page(document))
    if len(comparison.runs) == 1:
        write_cards(comparison)
    return _for_terminal(comparison)


def refuse_repeated(folders: Sequence[Path]) -> None:
    """Raise UserError if a run is named twice: its answers would count twice."""
    for index, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:index]}:
            raise UserError(f"{folder}: this run is named twice; leave one of them out")


def _draw(comparison: Comparison, out: Path) -> dict[str, str]:
    """Draw the figures into figures/; returns the files by the name of the figure, relative to the report."""
    if not can_draw():
        return {}
    home, drawings = out.parent / "figures", {}
    for table in category_tables(comparison.columns, comparison.benchmarks):
        benchmark = table.caption.partition(":")[0]
        draw_categories(table, home / f"{out.stem}-{benchmark}.png")
    if len(comparison.points) > 1:
        drawings[TRADEOFF] = f"figures/{out.stem}-{TRADEOFF}.png"
        draw_tradeoff(comparison.points, out.parent / drawings[TRADEOFF])
    for number, run in enumerate(comparison.runs):
        if curves := refusal_curves(run):
            name = figure_name(number)
            drawings[name] = f"figures/{out.stem}-{name}.png"
            draw_curves(curves, out.parent / drawings[name])
    return drawings


def terminal_table(folders: Sequence[Path]) -> str:
    """Warnings, measures of discernment, results and headline of run folders, at most 100 columns wide.

    What makes the columns not comparable stands below the results.

    Raises:
        UserError: a folder is not a run folder, a file in it is broken, or two runs have no prompt in common.
    """
    return _for_terminal(compare([read_run(folder) for folder in folders]))


def _for_terminal(comparison: Comparison) -> str:
    rows = _results_rows(comparison)
    parts = [_wrapped(f"warning: {warning}") for warning in warnings(comparison.runs)]
    if len(rows) < 2:
        return "\n\n".join([*parts, missing(comparison.unevaluated)])
    for entry in comparison.discernment:
        table = measures_table(comparison.columns, entry, TERMINAL_ROWS)
        parts.append(f"{_wrapped(table.caption)}\n\n{text_table(table_rows(table))}")
    parts.append(text_table(rows))
    parts += map(_wrapped, comparability(comparison))
    if summary := headline(comparison):
        parts.append(_wrapped(summary))
    return "\n\n".join(parts)


def _results_rows(comparison: Comparison) -> list[list[str]]:
    """The table of results; next to a control without the number of prompts, to fit the width."""
    rows = [list(row) for row in table_rows(results_table(comparison))]
    has_control = any(column.model == CONTROL for column in comparison.columns)
    return [[row[0], *row[2:]] for row in rows] if has_control else rows


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, TERMINAL_WIDTH))
