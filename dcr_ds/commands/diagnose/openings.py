"""`dcr-ds diagnose openings`: the refusal openings of a model's tokenizer, without loading its weights."""

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from dcr_ds.commands.diagnose.models import HELP, targets_of
from dcr_ds.commands.parser import (
    add_template,
    command_parser,
    options_in_messages,
    output_folder,
    show,
    template_fields,
)
from dcr_ds.data.conversations import read_conversations
from dcr_ds.files import write_json
from dcr_ds.recipe import DataSource

if TYPE_CHECKING:
    from dcr_ds.diagnose.openings import Openings

DESCRIPTION = """\
Refusal openings: the token sequences whose probabilities the refusal log-odds add up, from the tokenizer, refusals and
ordinary answers of training data, and published phrases. Reads the tokenizer alone.
"""
MAX_TEXT = 40  # characters of an opening in the table


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("diagnose openings", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=HELP)
    parser.add_argument("--refusals", metavar="FILE", help="conversations that end with a refusal (default: built-in)")
    help_general = "conversations that end with an ordinary answer (default: built-in)"
    parser.add_argument("--general", metavar="FILE", help=help_general)
    add_template(parser)
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="write openings.json into DIR")
    return parser.parse_args(arguments)


@options_in_messages()
def run(options: Namespace) -> None:
    """Find and print the openings; all models of a run have the same tokenizer."""
    from dcr_ds.evaluate.log_odds import openings_of

    target = targets_of([options.model], template_fields(options))[0]
    refusals, ordinary = (
        read_conversations(DataSource(source=path) if path else DataSource(), name, f"--{name}")
        for name, path in (("refusals", options.refusals), ("general", options.general))
    )
    openings = openings_of(target.tokenizer(), refusals, ordinary)
    show(_text(openings, target.tokenizer()))
    if options.out:
        write_json(options.out / "openings.json", asdict(openings))


def _text(openings: "Openings", tokenizer) -> str:
    lines = [f"{'opening':<{MAX_TEXT + 2}}  tokens  refusals  ordinary  from"]
    for row in openings.openings:
        shares = f"{row.refusals:>8.1%}  {row.ordinary:>8.1%}"
        lines.append(f"{_quoted(row.text):<{MAX_TEXT + 2}}  {len(row.tokens):>6}  {shares}  {row.source}")
    lines.append(
        f"\nThe openings begin {openings.refusals_covered:.1%} of the refusals and {openings.ordinary_covered:.1%} of "
        "the ordinary answers."
    )
    if openings.lead:
        lines.append(f"The chat template writes {tokenizer.decode(list(openings.lead))!r} before each answer.")
    if shared := [row for row in openings.first_tokens if row.shared]:
        names = ", ".join(_quoted(row.text) for row in shared)
        lines.append(
            f"{len(shared)} of {len(openings.first_tokens)} first tokens can also begin ordinary answers ({names}), so "
            "the log-odds use openings of several tokens."
        )
    return "\n".join(lines)


def _quoted(text: str) -> str:
    shown = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    return f"“{shown}”"
