"""`dcr-ds baseline prosafeprune`: prune the subspace in which harmless prompts look harmful."""

from argparse import ArgumentTypeError, Namespace

from dcr_ds.baselines.prompts import ROLES
from dcr_ds.commands.baseline.weights import Method, change_weights, weights_parser
from dcr_ds.commands.parser import comma_separated, positive_int, positive_number

DESCRIPTION = """\
ProSafePrune (Chen et al., ICLR 2026): removes from the outputs of linear modules in the middle of the model what
seemingly toxic prompts share with harmful ones and not with harmless ones.
"""
MOST_LAYERS = 9999
PAPER = "ProSafePrune: Projected Safety Pruning for Mitigating Over-Refusal in LLMs"


def parse(name: str, arguments: list[str]) -> Namespace:
    parser = weights_parser(name, DESCRIPTION, validation=None)
    parser.add_argument("--rank", type=positive_int, default=16, metavar="R", help="of each subspace (default: 16)")
    help_strength = "λ: 1 removes the part as a whole (default: 0.9)"
    parser.add_argument("--strength", type=positive_number, default=0.9, metavar="λ", help=help_strength)
    help_layers = "such as 14,15 or 14-16, from 0 (default: five around the one that separates the sets best)"
    parser.add_argument("--layers", type=_layers, metavar="LAYERS", help=help_layers)
    help_modules = "attention, mlp, or both with a comma (default: attention)"
    parser.add_argument("--modules", type=_modules, default=("attention",), metavar="NAMES", help=help_modules)
    return parser.parse_args(arguments)


def run(name: str, arguments: list[str]) -> int:
    """Find the subspaces and write the pruned model."""
    options = parse(name, arguments)
    from dcr_ds.baselines.projections import linears
    from dcr_ds.baselines.prosafeprune import ProSafePruneSettings, paths_of, prosafeprune

    settings = ProSafePruneSettings(options.rank, options.strength, options.modules, options.layers)
    method = Method(name, PAPER, lambda model: linears(model, paths_of(settings.modules)), prosafeprune)
    change_weights(method, options, settings, dict.fromkeys(ROLES, (options.train,)))
    return 0


def _modules(text: str) -> tuple[str, ...]:
    from dcr_ds.baselines.prosafeprune import MODULES

    names = tuple(comma_separated(text))
    if not names or set(names) - set(MODULES):
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(MODULES)}, or both with a comma")
    return names


def _layers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in comma_separated(text):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
            raise ArgumentTypeError(f"{part!r} is not a layer or a range of layers, such as 14 or 14-16")
        if int(last or first) > MOST_LAYERS:
            raise ArgumentTypeError(f"{part!r}: no model has so many layers")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise ArgumentTypeError("names no layer")
    return tuple(dict.fromkeys(numbers))
