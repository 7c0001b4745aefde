"""Write the report of run folders: Markdown, an HTML page, figures, and the model cards of a single run."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from textwrap import wrap

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.report.card import write_cards
from dcr_ds.report.compose import compose
from dcr_ds.report.numbers.comparison import Comparison, compare
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.render.html import html_page
from dcr_ds.report.render.markdown import markdown_text, table_rows
from dcr_ds.report.render.png import can_draw, draw_categories, draw_tradeoff
from dcr_ds.report.render.tables import text_table
from dcr_ds.report.sections.categories import category_tables
from dcr_ds.report.sections.discernment import TERMINAL_ROWS, measures_table
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.results import missing, results_table

TERMINAL_WIDTH = 100


def write_report(folders: Sequence[Path], out: Path) -> str:
    """Write the report of run folders to `out`, with the HTML page and figures/ next to it; returns the Markdown.

    For a single run, also write the cards of its models.

    Raises:
        UserError: a folder is not a run folder, a file in it is broken, or two runs have no prompt in common.
    """
    if out.suffix == ".html":
        raise UserError(
            f"--out {out}: must name the Markdown file, such as {out.stem}.md; the HTML page is written next to it"
        )
    comparison = compare([read_run(folder) for folder in folders])
    command = f"dcr-ds report {' '.join(quote(str(folder)) for folder in folders)} --out {quote(str(out))}"
    document = compose(comparison, command, _draw(comparison, out))
    text = markdown_text(document)
    write_atomically(out, text)
    write_atomically(out.with_suffix(".html"), html_page(document))
    if len(comparison.runs) == 1:
        write_cards(comparison)
    return text


def _draw(comparison: Comparison, out: Path) -> str | None:
    """Draw the figures into figures/; returns the path of the trade-off, None if it was not drawn."""
    if not can_draw():
        return None
    for table in category_tables(comparison.columns, comparison.benchmarks):
        benchmark = table.caption.partition(":")[0]
        draw_categories(table, out.parent / "figures" / f"{out.stem}-{benchmark}.png")
    if len(comparison.points) < 2:
        return None
    draw_tradeoff(comparison.points, out.parent / "figures" / f"{out.stem}-tradeoff.png")
    return f"figures/{out.stem}-tradeoff.png"


def terminal_table(folders: Sequence[Path]) -> str:
    """The measures of discernment, the table of results and the headline of run folders, at most 100 columns wide."""
    comparison = compare([read_run(folder) for folder in folders])
    rows = table_rows(results_table(comparison.columns, comparison.benchmarks))
    if len(rows) < 2:
        return missing(comparison.unevaluated)
    parts = []
    for entry in comparison.discernment:
        table = measures_table(comparison.columns, entry, TERMINAL_ROWS)
        parts.append(f"{_wrapped(table.caption)}\n\n{text_table(table_rows(table))}")
    parts.append(text_table(rows))
    if summary := headline(comparison.columns, comparison.benchmarks, comparison.discernment):
        parts.append(_wrapped(summary))
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, TERMINAL_WIDTH))
