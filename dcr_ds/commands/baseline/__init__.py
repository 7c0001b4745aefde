"""`dcr-ds baseline`: what a user would try instead of DCR, as a model or a recipe (docs/baselines.md)."""

import difflib
import importlib
from contextlib import nullcontext
from typing import NamedTuple

from dcr_ds.commands.parser import command_parser, options_in_messages, refuse


class Baseline(NamedTuple):
    """What it is made from (MODEL or RECIPE), the module here with its `parse` and `run`, and a summary for --help."""

    made_from: str
    module: str
    summary: str


BASELINES = {
    "stl-aug": Baseline("RECIPE", "recipes", "equal data: STL on the prompts that refine sees, as many steps"),
    "rationale-only": Baseline("RECIPE", "recipes", "STL on refusals without the boilerplate sentence"),
    "knob": Baseline("MODEL", "knob", "a constant added to the logits of refusal openings"),
    "scans": Baseline("MODEL", "scans", "SCANS: activations steered by a classification of the prompt"),
    "surgical": Baseline("MODEL", "surgical", "weights without the false-refusal direction"),
    "prosafeprune": Baseline(
        "MODEL", "prosafeprune", "weights without what seemingly toxic prompts share with toxic ones"
    ),
    "llm-va": Baseline("MODEL", "llm_va", "weights that answer as far as a prompt is benign"),
}
DESCRIPTION = """\
Make a baseline that DCR is compared with. A RECIPE gives a folder with training data and a recipe for train.py; a MODEL
gives a folder that dcr-ds evaluate takes like any model.

{names}

dcr-ds baseline NAME --help lists the options of each.
"""


def run(arguments: list[str]) -> int:
    """Make a baseline. Called on all ranks.

    Raises:
        UserError: wrong usage, or what the baseline raises.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser("baseline", DESCRIPTION.format(names=_listing())).print_help()
        return 0
    name, rest = arguments[0], arguments[1:]
    module = _module(name)
    with options_in_messages() if BASELINES[name].made_from == "MODEL" else nullcontext():
        return module.run(name, rest)


def _parse(arguments: list[str]):
    """Parse the arguments without making anything."""
    return _module(arguments[0]).parse(arguments[0], arguments[1:])


def _module(name: str):
    if name not in BASELINES:
        close = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(BASELINES)}"
        refuse("baseline", f"unknown baseline {name!r}; {hint}")
    return importlib.import_module(f"dcr_ds.commands.baseline.{BASELINES[name].module}")


def _listing() -> str:
    width = max(map(len, BASELINES))
    return "\n".join(
        f"  {name:<{width}}  {baseline.made_from:<6}  {baseline.summary}" for name, baseline in BASELINES.items()
    )
