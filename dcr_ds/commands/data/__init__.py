"""`dcr-ds data`: tools for training data (docs/data-tools.md)."""

import argparse
import importlib
from types import ModuleType

from dcr_ds.commands.parser import command_parser, refuse

DESCRIPTION = """\
Tools for training data.

  dcr-ds data check FILES…    what a run would read: rows, duplicates, leakage, confounds, licences
  dcr-ds data pairs PROMPTS   candidate twins for harmful prompts, from a chat endpoint, for review

dcr-ds data WHAT --help lists the options of each.
"""
TOOLS = ("check", "pairs")


def run(arguments: list[str]) -> int:
    """Run one tool.

    Raises:
        UserError: wrong usage, data that a run would refuse, or an endpoint that fails.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser("data", DESCRIPTION).print_help()
        return 0
    module, options = _parse(arguments)
    module.run(options)
    return 0


def _parse(arguments: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    what, rest = arguments[0], arguments[1:]
    if what not in TOOLS:
        refuse("data", f"unknown tool {what!r}; there are {', '.join(TOOLS)}")
    module = importlib.import_module(f"dcr_ds.commands.data.{what}")
    return module, module.parse(rest)
