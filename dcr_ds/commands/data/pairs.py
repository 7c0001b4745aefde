"""`dcr-ds data pairs`: candidate twins for harmful prompts from a chat endpoint, their review, the accepted sets."""

from argparse import Namespace
from pathlib import Path

from dcr_ds.commands.parser import (
    add_endpoint,
    checked_mapping,
    column_mapping,
    command_parser,
    endpoint_of,
    output_path,
    positive_int,
    refuse,
    refuse_overwriting,
    show,
)
from dcr_ds.errors import write_errors_as_user_errors
from dcr_ds.locks import sole_writer
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.recipe import DataSource

DESCRIPTION = """\
Ask a language model for a harmless twin of each harmful prompt: a prompt with the same trigger words and form. Pairs
that pass all checks are written to --out, such as pairs.jsonl, and all candidates to pairs.review.csv, which a person
fills in: yes or no in the column keep; candidates may be edited. A command that was interrupted continues with the same
command.

  dcr-ds data pairs harmful.csv --endpoint http://localhost:8000/v1#NAME --out pairs.jsonl
  dcr-ds data pairs --accept pairs.review.csv --out data/pairs

With --accept: write the kept pairs as seemingly_toxic.jsonl and toxic.jsonl into the folder of --out.
"""
COLUMNS = ("prompt", "id")


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("data pairs", DESCRIPTION)
    add = parser.add_argument
    add("prompts", nargs="?", metavar="PROMPTS", help="the harmful prompts: a file, URL, hub id or builtin")
    add("--endpoint", metavar="URL#MODEL", help="the model that writes candidates: an OpenAI-compatible endpoint")
    add("--out", type=output_path, required=True, metavar="FILE", help="pairs (.jsonl); with --accept: a folder")
    add("--accept", type=Path, metavar="REVIEW", help="a review file that a person has filled in")
    add("--guard", metavar="URL#MODEL", help="a model that labels candidates; the harmful ones fail a check")
    help_columns = "the file's column for prompt or id"
    add("--columns", nargs="+", type=column_mapping, default=[], metavar="NAME=COLUMN", help=help_columns)
    add("--rows", type=positive_int, metavar="N", help="a sample of this many prompts (default: all)")
    add_endpoint(parser)
    options = parser.parse_args(arguments)
    if options.accept and (options.prompts or options.endpoint or options.guard):
        refuse("data pairs", "--accept takes a review file and --out FOLDER alone")
    if not options.accept and not (options.prompts and options.endpoint):
        refuse("data pairs", "PROMPTS and --endpoint URL#MODEL are required, or --accept REVIEW")
    if options.accept and options.out.is_file():
        refuse("data pairs", f"--out: {options.out} is a file; with --accept, name a folder")
    if not options.accept and (options.out.suffix != ".jsonl" or options.out.is_dir()):
        refuse("data pairs", f"--out: {options.out} is not the name of a .jsonl file")
    if options.prompts:
        from dcr_ds.datatools.pairs.make import replies_file, review_file

        for file in (options.out, replies_file(options.out), review_file(options.out)):
            refuse_overwriting("data pairs", file, [Path(options.prompts)])
    options.columns = checked_mapping("data pairs", options.columns, COLUMNS)
    return options


def run(options: Namespace) -> None:
    """Make pairs, or accept a review.

    Raises:
        UserError: prompts or review cannot be read, the endpoint fails, or a file would be overwritten.
    """
    with write_errors_as_user_errors(options.out):
        if options.accept:
            _accept(options.accept, options.out)
        else:
            _make(options)


def _accept(review: Path, folder: Path) -> None:
    from dcr_ds.datatools.pairs.review import accepted, write_sets

    pairs = accepted(review)
    seemingly_toxic, toxic = write_sets(pairs, folder)
    show(
        f"{len(pairs)} pairs: {seemingly_toxic} and {toxic}. In a recipe:\n\n"
        f"data: {{seemingly_toxic: {seemingly_toxic}, toxic: {toxic}}}\nrefine: {{pairs: matched}}"
    )


def _make(options: Namespace) -> None:
    from dcr_ds.data.prompts import read_prompts
    from dcr_ds.datatools.pairs.make import make_pairs, review_file, summary

    endpoint = _endpoint("--endpoint", options.endpoint, options)
    guard = _endpoint("--guard", options.guard, options) if options.guard else None
    source = DataSource(source=options.prompts, columns=options.columns, rows=options.rows)
    prompts = read_prompts(source, "toxic", "prompts")
    for note in prompts.notes:
        show(f"{options.prompts}: {note}")
    if earlier := sum(bool(row.context) for row in prompts.rows):
        show(f"{options.prompts}: {earlier} prompts left out: they have earlier turns, and a twin has none")
    rows = [row for row in prompts.rows if not row.context]
    with sole_writer(options.out):
        pairs = make_pairs(rows, endpoint, guard, options.out)
    spent = "; ".join(str(part.spent) for part in (endpoint, guard) if part)
    show(f"{summary(pairs)} ({spent})\n{options.out}: pairs that pass\n{review_file(options.out)}: for the review")


def _endpoint(option: str, text: str, options: Namespace) -> Endpoint:
    from dcr_ds.evaluate.targets import ENDPOINT

    match = ENDPOINT.fullmatch(text)
    if match is None:
        refuse("data pairs", f"{option}: must be URL#MODEL, such as http://localhost:8000/v1#NAME")
    return endpoint_of(match[1], match[2], options)
