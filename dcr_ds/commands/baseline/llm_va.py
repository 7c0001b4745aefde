"""`dcr-ds baseline llm-va`: align the answer vectors of a model with its benign vectors."""

from argparse import Namespace

from dcr_ds.baselines.prompts import ROLES
from dcr_ds.commands.baseline.weights import Method, change_weights, weights_parser
from dcr_ds.commands.parser import positive_int

DESCRIPTION = """\
LLM-VA (Zhang et al., ACL 2026): changes the weights that write attention and MLP outputs so that a prompt moves along
the direction of answering as far as it is benign.
"""
PAPER = "LLM-VA: Resolving the Jailbreak-Overrefusal Trade-off via Vector Alignment (arXiv 2601.19487)"


def parse(name: str, arguments: list[str]) -> Namespace:
    parser = weights_parser(name, DESCRIPTION, validation=32)
    help_modules = "weights changed per iteration (default: half of those of attention and MLP outputs)"
    parser.add_argument("--modules", type=positive_int, metavar="N", help=help_modules)
    help_iterations = "at most; the best one is kept (default: 10)"
    parser.add_argument("--iterations", type=positive_int, default=10, metavar="N", help=help_iterations)
    return parser.parse_args(arguments)


def run(name: str, arguments: list[str]) -> int:
    """Align the vectors and write the changed model."""
    options = parse(name, arguments)
    from dcr_ds.baselines.llm_va import BENIGN, LlmVaSettings, llm_va
    from dcr_ds.baselines.projections import check_residual

    settings = LlmVaSettings(options.modules, options.iterations)
    # as many benign prompts as harmful ones
    whole, half = ((options.train // part or 1, options.validation // part or 1) for part in (1, 2))
    counts = {role: half if role in BENIGN else whole for role in ROLES}
    change_weights(Method(name, PAPER, check_residual, llm_va), options, settings, counts)
    return 0
