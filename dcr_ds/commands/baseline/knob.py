"""`dcr-ds baseline knob`: a constant on the logits of refusal openings, from the tokenizer alone."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence

from dcr_ds.commands.baseline.shared import baseline_parser, check_out, locate_source
from dcr_ds.commands.parser import finite_number, show
from dcr_ds.data.conversations import read_conversations
from dcr_ds.recipe import DataSource

MOST = 100
DESCRIPTION = """\
The knob: adds a constant to the logits of the tokens that refusals begin with, at the first token of the answer. It
moves a model along its own curve of compliance against refusal. Reads the tokenizer alone, no weights.
"""


def parse(name: str, arguments: list[str]) -> Namespace:
    parser = baseline_parser(name, DESCRIPTION)
    help_strength = "the constant; above 0 for more refusals, below 0 for fewer"
    parser.add_argument("--strength", type=_strength, required=True, metavar="C", help=help_strength)
    parser.add_argument("--refusals", metavar="FILE", help="conversations that end with a refusal (default: built-in)")
    help_general = "conversations that end with an ordinary answer (default: built-in)"
    parser.add_argument("--general", metavar="FILE", help=help_general)
    return parser.parse_args(arguments)


def run(name: str, arguments: list[str]) -> int:
    """Find the first tokens of refusals and write the baseline folder."""
    options = parse(name, arguments)
    from dcr_ds.baselines.knob import knob_openings, knob_settings
    from dcr_ds.commands.baseline.shared import write

    check_out(options.out)
    source = locate_source(options)
    sets = {
        kind: read_conversations(DataSource(source=path) if path else DataSource(), kind, f"--{kind}")
        for kind, path in (("refusals", options.refusals), ("general", options.general))
    }
    openings = knob_openings(source.tokenizer(), sets["refusals"], sets["general"])
    settings = knob_settings(openings, options.strength)
    write(name, source, settings, sets, options.out)
    count = f"{len(settings['tokens'])} first tokens of {len(openings.openings)} refusal openings"
    show(f"{options.strength:+g} on {count}: {_quoted(settings['texts'])}")
    if shared := [first.text for first in openings.first_tokens if first.shared]:
        show(f"Ordinary answers also begin with {_quoted(shared)}.")
    show(f"{options.out}: dcr-ds evaluate knob={options.out} --suite quick --out runs")
    return 0


def _strength(text: str) -> float:
    if abs(value := finite_number(text)) > MOST:
        raise ArgumentTypeError(f"{text} is out of range; ±{MOST} is a factor of e^{MOST}, and decides every answer")
    return value


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)
