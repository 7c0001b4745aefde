"""`dcr-ds repair`: refine and shortly align a model that is aligned already and refuses harmless prompts."""

from dcr_ds.commands import train
from dcr_ds.commands.parser import refuse, show
from dcr_ds.recipe.arguments import parse_train

RECIPE = "recipes/repair.yaml"
SOURCE = "model.source"
TWO_MODELS = (
    f"{{1}} follows the MODEL {{0}}: repair takes one model and no recipe. Its settings are those of {RECIPE}; change "
    "them with --FIELD VALUE, or train a recipe of your own that extends it"
)
DESCRIPTION = f"""\
Usage: dcr-ds repair MODEL [--FIELD VALUE …] [options]

Repair a model that is aligned already and refuses harmless prompts: refine it, then align it again
for a short time. The result is compared with MODEL and with a control, the same short alignment
without refine. MODEL is a folder, hub id or GGUF file, and is not changed. Fields and options are
those of train; this is the run of {RECIPE}:

  dcr-ds repair runs/smollm2-135m/control/model
  dcr-ds repair my-model --name my-repair --data.toxic prompts.csv --refine.pairs mixed
  deepspeed train.py {RECIPE} --{SOURCE} my-model        the same on several GPUs

Options:
  --dry-run       print the resolved recipe, parameter counts, steps and tokens; load no weights
  --redo STAGE    repeat refine, align, evaluate or all, and the stages after it
  --help          this text; dcr-ds train --help lists the fields
"""


def run(arguments: list[str]) -> int:
    """Run the repair of a model. Called on all ranks.

    Raises:
        UserError: no MODEL, or what `train` raises.
    """
    if {"--help", "-h"} & set(arguments):
        show(DESCRIPTION)
        return 0
    return train.run(_parse(arguments))


def _parse(arguments: list[str]) -> list[str]:
    """The arguments of `train`."""
    if not arguments or not arguments[0].strip() or arguments[0].startswith("-"):
        refuse("repair", "name the MODEL to repair first: a folder, hub id or GGUF file")
    parsed = parse_train(arguments, TWO_MODELS)  # MODEL takes the place of the recipe
    model, *rest = arguments
    if SOURCE in dict(parsed.overrides):
        refuse("repair", f"--{SOURCE} is MODEL; name it once")
    return [RECIPE, f"--{SOURCE}", model, *rest]
