"""`dcr-ds baseline`: training-free baselines to compare a run with (docs/baselines.md)."""

import argparse
import difflib
import importlib
from types import ModuleType

from dcr_ds.commands.parser import command_parser, refuse

DESCRIPTION = """\
Make a training-free baseline from a model, for comparison with a run: dcr-ds evaluate takes the folder that it writes
like any model.

  dcr-ds baseline knob MODEL --out DIR     adds a constant to the logits of refusal openings

dcr-ds baseline NAME --help lists the options of each.
"""
BASELINES = ("knob",)  # NAME is made by `dcr_ds.commands.baseline.NAME`, with parse(arguments) and run(options)


def run(arguments: list[str]) -> int:
    """Make one baseline.

    Raises:
        UserError: wrong usage, or a model or data set that cannot be used.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser("baseline", DESCRIPTION).print_help()
        return 0
    module, options = _parse(arguments)
    module.run(options)
    return 0


def _parse(arguments: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    name, rest = arguments[0], arguments[1:]
    if name not in BASELINES:
        close = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(BASELINES)}"
        refuse("baseline", f"unknown baseline {name!r}; {hint}")
    module = importlib.import_module(f"dcr_ds.commands.baseline.{name}")
    return module, module.parse(rest)
