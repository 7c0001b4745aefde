"""`dcr-ds compare-quality`: which of two models gives the better answers, judged by a language model."""

import argparse
import json
import sys
from pathlib import Path

from dcr_ds.commands.parser import (
    add_endpoint,
    checked_mapping,
    column_mapping,
    command_parser,
    endpoint_of,
    output_file,
    refuse,
    refuse_other_file,
    refuse_overwriting,
)
from dcr_ds.evaluate.quality import compare, read_pairs, summarise
from dcr_ds.files import write_json
from dcr_ds.judges.rows import COLUMNS
from dcr_ds.locks import sole_writer

DESCRIPTION = """\
Ask an LLM judge which of two models answers each prompt better. Each pair is judged in both orders; a preference that
changes with the order counts as a tie. Both files are generations.jsonl of the same benchmark, or other files
of answers that `dcr-ds judge` reads. A comparison that was interrupted continues with the same command.

  dcr-ds compare-quality A/generations.jsonl B/generations.jsonl --out quality.jsonl \\
      --judge-url http://localhost:8000/v1 --model NAME
"""


def run(arguments: list[str]) -> int:
    """Compare two files of generations and print the summary.

    Raises:
        UserError: wrong usage, a file that cannot be compared, or an endpoint that fails.
    """
    options = _parse(arguments)
    columns = checked_mapping("compare-quality", options.columns, COLUMNS)
    pairs = read_pairs(options.a, options.b, columns)
    with sole_writer(options.out):
        rows = compare(pairs, endpoint_of(options.judge_url, options.model, options), options.out)
        summary = {"a": str(options.a), "b": str(options.b), "judge": options.model, **summarise(pairs, rows)}
        write_json(options.out.with_suffix(".json"), summary)
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    if summary["unparsed"] == len(rows):
        note = f"{options.model}: no reply could be parsed; look at what this judge replies before you use it"
        print(note, file=sys.stderr)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("compare-quality", DESCRIPTION)
    add = parser.add_argument
    add("a", type=Path, metavar="A.jsonl", help="generations of model A; the win rate is that of A over B")
    add("b", type=Path, metavar="B.jsonl", help="generations of model B")
    add("--judge-url", required=True, metavar="URL", help="base URL of the judge's OpenAI-compatible endpoint")
    add("--model", required=True, metavar="NAME", help="name of the judge model at the endpoint")
    help_out = "verdicts, such as quality.jsonl; the summary goes to quality.json"
    add("--out", required=True, type=output_file, metavar="FILE", help=help_out)
    help_columns = "both files' column for prompt, completion, id or finish"
    add("--columns", nargs="+", type=column_mapping, default=[], metavar="NAME=COLUMN", help=help_columns)
    add_endpoint(parser)
    options = parser.parse_args(arguments)
    if options.out.suffix != ".jsonl":
        refuse("compare-quality", f"--out: {options.out} does not end in .jsonl")
    if options.a.resolve() == options.b.resolve():
        refuse("compare-quality", f"{options.a} and {options.b} are the same file; name the answers of another model")
    for out in (options.out, options.out.with_suffix(".json")):
        refuse_overwriting("compare-quality", out, (options.a, options.b))
    refuse_other_file("compare-quality", options.out.with_suffix(".json"), "win_rate")
    return options
