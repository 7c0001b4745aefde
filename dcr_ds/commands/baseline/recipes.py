"""The baselines of `dcr-ds baseline` that are training recipes: stl-aug and rationale-only."""

import argparse
from pathlib import Path

from dcr_ds.augment.folder import RECIPE
from dcr_ds.commands.parser import command_parser, output_path, positive_int, refuse
from dcr_ds.engine import distributed as process
from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.launcher import is_main_process, set_environment
from dcr_ds.errors import write_errors_as_user_errors
from dcr_ds.locks import lock_of
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.arguments import parse_train
from dcr_ds.run.opening import held_on_main, open_run

USAGE = "[RECIPE] --out FOLDER [options] [--FIELD VALUE …]"
MAX_NEW_TOKENS = 128
DESCRIPTIONS = {
    "stl-aug": """\
Equal data: STL on the prompts that refine sees, and as many steps as refine and align take together. The recipe's own
model answers the seemingly toxic prompts; toxic prompts get refusals that fit any harmful prompt. Writes the training
data and recipe.yaml into FOLDER.

  dcr-ds baseline stl-aug recipes/smollm2-135m.yaml --out stl-aug
  dcr-ds baseline stl-aug recipes/smollm2-135m.yaml --seed 1 --answers stl-aug/answers.jsonl --out stl-aug-1
  deepspeed train.py stl-aug/recipe.yaml
""",
    "rationale-only": """\
STL whose refusals have no boilerplate sentence ("I'm sorry, but I can't help with that."), only the reason and what the
answer offers instead. Writes the training data and recipe.yaml into FOLDER.

  dcr-ds baseline rationale-only recipes/smollm2-135m.yaml --out rationale-only
  deepspeed train.py rationale-only/recipe.yaml
""",
}


def run(name: str, arguments: list[str]) -> int:
    """Write the folder of a baseline. Called on all ranks.

    Raises:
        UserError: wrong usage, or a recipe, model or data that cannot be used.
    """
    options, recipe = parse(name, arguments)
    with write_errors_as_user_errors(options.out):
        notes = _stl_aug(recipe, options) if name == "stl-aug" else _rationale_only(recipe, options)
    if is_main_process():
        print("\n".join([*notes, f"\n{options.out}: train on it with\n  deepspeed train.py {options.out / RECIPE}"]))
    return 0


def parse(name: str, arguments: list[str]) -> tuple[argparse.Namespace, Recipe]:
    """The options of a baseline, and the recipe."""
    parser = command_parser(f"baseline {name}", DESCRIPTIONS[name], usage=USAGE)
    add = parser.add_argument
    add("--out", type=output_path, required=True, metavar="FOLDER", help="a new folder")
    if name == "stl-aug":
        help_length = f"longest answer, in tokens (default: {MAX_NEW_TOKENS})"
        add("--max-new-tokens", type=positive_int, default=MAX_NEW_TOKENS, metavar="N", help=help_length)
        help_answers = "answers.jsonl of an earlier call: answers of the same model to the same prompts are reused"
        add("--answers", type=Path, action="append", default=[], metavar="FILE", help=help_answers)
        help_steps = "steps of refine to match (default: those of the recipe's run, else refine.max_steps)"
        add("--refine-steps", type=positive_int, metavar="N", help=help_steps)
        add("--seemingly-toxic", metavar="FILE", help="other prompts to answer than those of refine")
        add("--toxic", metavar="FILE", help="other prompts to refuse than those of refine")
    options, words = parser.parse_known_args(arguments)
    train = parse_train(words)
    if train.dry_run or train.redo:
        refuse(f"baseline {name}", "--dry-run and --redo are options of train")
    return options, train.load()


def _rationale_only(recipe: Recipe, options: argparse.Namespace) -> list[str]:
    from dcr_ds.augment.rationales import write_rationale_only

    return write_rationale_only(recipe, options.out)


def _stl_aug(recipe: Recipe, options: argparse.Namespace) -> list[str]:
    set_environment()  # before torch is imported, as below
    from dcr_ds.augment.folder import check_output, unfinished_folder
    from dcr_ds.augment.stl_aug import NAME, Options, read_data, write_stl_aug
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import resolve
    from dcr_ds.evaluate.model import EvaluatedModel
    from dcr_ds.evaluate.targets import checked_source
    from dcr_ds.models.checkpoint_files import model_config
    from dcr_ds.models.load import DTYPES
    from dcr_ds.recipe.layout import ModelFolder

    data, source = read_data(recipe, options.out), checked_source(recipe.model)
    with open_run([], recipe.watchdog.hang_minutes) as ranks, held_on_main(options.out, lock_of(options.out), ranks):
        process.decide_on_main(lambda: check_output(options.out), ranks)  # it may have waited for another command
        check_same(data.hashes, ranks)
        resolved, _ = process.decide_on_main(
            lambda: resolve(recipe, model_config(source), Machine.detect(ranks)), ranks
        )
        home = ModelFolder(unfinished_folder(options.out) / "generating")
        section = resolved.model
        model = EvaluatedModel(NAME, home, source, DTYPES[section.dtype], section.attention, section.template)
        files = {"seemingly_toxic": options.seemingly_toxic, "toxic": options.toxic}
        chosen = Options(options.out, options.max_new_tokens, tuple(options.answers), options.refine_steps, files)
        return write_stl_aug(recipe, model, data, chosen, ranks)
