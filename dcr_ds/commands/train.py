"""`dcr-ds train`, the same as train.py: run the stages of a recipe."""

import sys

from dcr_ds.commands.field_help import overview, topic_help
from dcr_ds.commands.parser import show
from dcr_ds.engine.launcher import is_main_process
from dcr_ds.errors import write_errors_as_user_errors
from dcr_ds.recipe.arguments import DEFAULT_RECIPE, parse_train

DESCRIPTION = f"""\
Usage: dcr-ds train [RECIPE] [--FIELD VALUE …] [options]      (the same as train.py)

Refine, align and evaluate a model as a recipe says. RECIPE is a YAML file (default:
{DEFAULT_RECIPE}); `dcr-ds recipes` lists the shipped ones. Each field of it can be set by
its dotted name. A run that was interrupted continues with the same command.

Examples:
  deepspeed train.py                                     the demo, with or without a GPU
  python train.py recipes/smollm2-135m.yaml --refine.layer 20 --data.toxic prompts.csv
  torchrun --nproc_per_node 8 train.py recipes/qwen2.5-7b.yaml
  deepspeed --num_gpus 8 train.py recipes/llama-3-8b.yaml --deepspeed ds_configs/zero3.json

Options:
  --dry-run       print the resolved recipe, parameter counts, steps and tokens; load no weights
  --redo STAGE    repeat refine, align, evaluate or all, and the stages after it
  --help [NAME]   the fields of a section or field (--help refine, --help align.lora), or of all
                  (--help all); without a name this overview
"""


def run(arguments: list[str]) -> int:
    """Run the stages of a recipe that are not done yet. Called on all ranks.

    Raises:
        UserError: wrong usage, recipe, data or model; found before torch is imported.
    """
    if help_flag := next((flag for flag in ("--help", "-h") if flag in arguments), None):
        show(_help(arguments[arguments.index(help_flag) + 1 :]))
        return 0
    parsed = parse_train(arguments)
    recipe = parsed.load()
    for note in parsed.notes() if is_main_process() else []:
        print(note, file=sys.stderr)
    from dcr_ds.run.pipeline import run as run_pipeline

    with write_errors_as_user_errors(recipe.folder):
        run_pipeline(recipe, redo=parsed.redo, dry_run=parsed.dry_run)
    return 0


def _help(following: list[str]) -> str:
    if not following or following[0].startswith("--"):
        return f"{DESCRIPTION}\n{overview()}"
    return topic_help(following[0])
