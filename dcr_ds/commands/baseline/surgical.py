"""`dcr-ds baseline surgical`: single-vector ablation of the false-refusal direction."""

from argparse import Namespace

from dcr_ds.baselines.prompts import ROLES
from dcr_ds.commands.baseline.weights import Method, change_weights, weights_parser
from dcr_ds.commands.parser import positive_number

DESCRIPTION = """\
Surgical (Wang et al., ICLR 2025): finds the direction in which activations of falsely refused prompts differ, takes the
refusal direction out of it, and removes what is left from all weights that write to the residual stream.
"""
PAPER = "Surgical, Cheap, and Flexible: Mitigating False Refusal in Language Models via Single Vector Ablation"


def parse(name: str, arguments: list[str]) -> Namespace:
    parser = weights_parser(name, DESCRIPTION, validation=32)
    help_strength = "λ: how much of the refusal direction is taken out of the candidates (default: 1)"
    parser.add_argument("--strength", type=positive_number, default=1.0, metavar="λ", help=help_strength)
    help_kl = "largest divergence of the next token of harmless prompts, in nats (default: 0.2)"
    parser.add_argument("--max-kl", type=positive_number, default=0.2, metavar="NATS", help=help_kl)
    return parser.parse_args(arguments)


def run(name: str, arguments: list[str]) -> int:
    """Find the direction and write the model without it."""
    options = parse(name, arguments)
    from dcr_ds.baselines.projections import check_residual
    from dcr_ds.baselines.surgical import SurgicalSettings, surgical

    settings = SurgicalSettings(options.strength, options.max_kl)
    counts = dict.fromkeys(ROLES, (options.train, options.validation))
    change_weights(Method(name, PAPER, check_residual, surgical), options, settings, counts)
    return 0
