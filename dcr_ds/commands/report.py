"""The command `dcr-ds report`."""

from argparse import ArgumentParser
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report.write import terminal_table, write_report

DESCRIPTION = """\
Write the report of run folders (Markdown, one self-contained page, a figure) and print its table of results. The report
of one run writes the cards of its models too.
"""


def run(arguments: list[str]) -> int:
    """Write a report; returns the exit code.

    Raises:
        UserError: the arguments or a run folder are wrong.
    """
    parser = ArgumentParser(prog="dcr-ds report", description=DESCRIPTION)
    parser.error = _refuse
    told = "run folders, first the one to compare with; those that differ in nothing but the seed are combined"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=told)
    told = (
        "the Markdown file; the page and figures/ go beside it (default: RUN/report/report.md, of several runs "
        "report/report.md beside the first)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=told)
    options = parser.parse_args(arguments)
    if not options.runs:
        _refuse("name one or more run folders")
    home = options.runs[0] if len(options.runs) == 1 else options.runs[0].parent
    out = options.out or RunFolder(home).report
    write_report(options.runs, out)
    print(f"{terminal_table(options.runs)}\n\nReport: {out} and {out.with_suffix('.html')}")
    return 0


def _refuse(message: str) -> None:
    raise UserError(f"report: {message}, e.g. dcr-ds report runs/smollm2-135m")
