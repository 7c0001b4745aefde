"""`dcr-ds diagnose`: what gradients, hidden states, tokenizer and training prompts reveal (docs/diagnose.md)."""

from functools import partial

from dcr_ds.commands.parser import parse_tool, run_tool

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
run = partial(run_tool, "diagnose", DESCRIPTION, DIAGNOSES)
_parse = partial(parse_tool, "diagnose", DIAGNOSES)
