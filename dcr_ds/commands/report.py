"""`dcr-ds report`: reports of runs as Markdown, HTML and figures."""

import argparse
from pathlib import Path

from dcr_ds.commands.parser import command_parser, output_file, refuse_other_file
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report.compose import TITLE
from dcr_ds.report.write import write_report

DESCRIPTION = """\
Write the report of run folders (Markdown, one self-contained HTML page, figures) and print its table of results. The
report of a single run also writes the model cards. Runs that differ only in the seed are combined.

  dcr-ds report runs/smollm2-135m
  dcr-ds report runs/smollm2-135m-stl runs/smollm2-135m --out compare.md
"""


def run(arguments: list[str]) -> int:
    """Write a report.

    Raises:
        UserError: wrong usage, a folder that is not a run, or a file that is no report would be overwritten.
    """
    options = _parse(arguments)
    home = options.runs[0] if len(options.runs) == 1 else options.runs[0].parent
    out = options.out or RunFolder(home).report
    for file in (out, out.with_suffix(".html")):
        refuse_other_file("report", file, TITLE)
    table = write_report(options.runs, out)
    print(f"{table}\n\nReport: {out} and {out.with_suffix('.html')}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, that of the control first")
    help_out = (
        "the Markdown file; the HTML page and figures/ go next to it (default: RUN/report/report.md; with several "
        "runs report/report.md next to the first)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE", help=help_out)
    return parser.parse_args(arguments)
