"""`dcr-ds data`: tools for training data (docs/data-tools.md)."""

from functools import partial

from dcr_ds.commands.parser import parse_tool, run_tool

DESCRIPTION = """\
Tools for training data.

  dcr-ds data check FILES…    what a run would read: rows, duplicates, leakage, confounds, licences
  dcr-ds data pairs PROMPTS   candidate twins for harmful prompts, from a chat endpoint, for review

dcr-ds data WHAT --help lists the options of each.
"""
TOOLS = ("check", "pairs")
run = partial(run_tool, "data", DESCRIPTION, TOOLS)
_parse = partial(parse_tool, "data", TOOLS)
