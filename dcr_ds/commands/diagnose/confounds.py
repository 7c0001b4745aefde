"""`dcr-ds diagnose confounds`: how well superficial features of the prompts separate the two sets of stage 1."""

from argparse import Namespace
from math import isnan
from typing import TYPE_CHECKING

from dcr_ds.commands.parser import command_parser, output_folder, refuse, show
from dcr_ds.data.load import refuse_common_prompts
from dcr_ds.data.prompts import read_prompts
from dcr_ds.files import without_nan, write_json
from dcr_ds.recipe.arguments import parse_train

if TYPE_CHECKING:
    from dcr_ds.diagnose.confounds import Confound

DESCRIPTION = """\
Confound check: how well superficial features of the prompts separate data.seemingly_toxic and data.toxic of a recipe.
A run does it, too, before it trains.

  dcr-ds diagnose confounds
  dcr-ds diagnose confounds my-recipe.yaml
  dcr-ds diagnose confounds --data.toxic prompts.csv
"""


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("diagnose confounds", DESCRIPTION, usage="[RECIPE] [--out DIR] [--FIELD VALUE …]")
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="write confounds.json into DIR")
    options, words = parser.parse_known_args(arguments)
    parsed = parse_train(words)
    if parsed.dry_run or parsed.redo:
        refuse("diagnose confounds", "--dry-run and --redo are options of train")
    options.recipe = parsed.load()
    return options


def run(options: Namespace) -> None:
    """Check the prompt sets of a recipe."""
    from dcr_ds.diagnose.confounds import check_confounds

    data = options.recipe.data
    sets = read_prompts(data.seemingly_toxic, "seemingly_toxic"), read_prompts(data.toxic, "toxic")
    refuse_common_prompts(*sets)
    confounds = check_confounds(*(of_class.rows for of_class in sets))
    show("\n".join(_lines(confounds)))
    if options.out:
        values = [
            {"feature": row.name, "auc": row.auc._asdict(), "note": row.note, "warning": row.warning}
            for row in confounds
        ]
        write_json(options.out / "confounds.json", without_nan({"confounds": values}))


def _lines(confounds: "list[Confound]") -> list[str]:
    lines = []
    for confound in confounds:
        auc = confound.auc
        measured = "" if isnan(auc.value) else f"AUC {auc.value:.3f} ({auc.low:.2f}–{auc.high:.2f})  "
        lines.append(f"{confound.name:<14} {measured}{confound.note}")
        if confound.warning:
            lines.append(f"  WARNING: {confound.warning}")
    return lines
