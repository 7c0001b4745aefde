"""`dcr-ds diagnose`: what gradients, hidden states, tokenizer and training prompts reveal (docs/diagnose.md)."""

import argparse
import importlib
from types import ModuleType

from dcr_ds.commands.parser import command_parser, refuse

DESCRIPTION = """\
Diagnose models and data. MODEL is a run folder (all its models), a model or adapter folder, hub id, GGUF file or
smollm2-135m. Results are printed, and written into --out; those of a run into RUN/diagnose without it.

  dcr-ds diagnose entk MODEL…        gradient kernel (eNTK) between prompts of three categories
  dcr-ds diagnose layers MODEL       how well each layer separates the two sets of stage 1
  dcr-ds diagnose confounds          what length, punctuation and words alone reveal of the sets
  dcr-ds diagnose pca RUN            held-out prompts before and after refine, as a picture
  dcr-ds diagnose openings MODEL     the refusal openings that log-odds are read from

dcr-ds diagnose WHAT --help lists the options of each.
"""
DIAGNOSES = ("entk", "layers", "confounds", "pca", "openings")


def run(arguments: list[str]) -> int:
    """Run one diagnosis.

    Raises:
        UserError: wrong usage, or a model or data set that cannot be used.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser("diagnose", DESCRIPTION).print_help()
        return 0
    module, options = _parse(arguments)
    module.run(options)
    return 0


def _parse(arguments: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    what, rest = arguments[0], arguments[1:]
    if what not in DIAGNOSES:
        refuse("diagnose", f"unknown diagnosis {what!r}; there are {', '.join(DIAGNOSES)}")
    module = importlib.import_module(f"dcr_ds.commands.diagnose.{what}")
    return module, module.parse(rest)
