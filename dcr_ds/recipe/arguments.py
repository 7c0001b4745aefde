"""The arguments of a run: a recipe, fields set by their dotted names, and what to do with it."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.recipe import STAGES, Recipe, load_recipe
from dcr_ds.recipe.reading import kept_fields

DEFAULT_RECIPE = "recipes/smollm2-135m.yaml"
TWO_RECIPES = "two recipes: {} and {}; the value of a field follows its --name"


class TrainArguments(NamedTuple):
    """The arguments of `train`."""

    recipe: str
    overrides: list[tuple[str, str]]  # (dotted field name, text), in order
    dry_run: bool
    redo: str | None  # a stage, or all

    def load(self) -> Recipe:
        return load_recipe(self.recipe, self.overrides)

    def notes(self) -> list[str]:
        """Warnings about fields that are given twice, or kept for another data set."""
        last, counts = dict(self.overrides), Counter(name for name, _ in self.overrides)
        repeated = [
            f"WARNING: --{name} is given {count} times; the last one counts: {last[name]}"
            for name, count in counts.items()  # no error, as scripts set fields after those of their user
            if count > 1
        ]
        return repeated + kept_fields(self.recipe, self.overrides)


def parse_train(arguments: Sequence[str], two: str = TWO_RECIPES) -> TrainArguments:
    """Parse `[RECIPE] [--field value | --field=value]… [--dry-run] [--redo STAGE]`; `two` is the error for two recipes.

    Not argparse: field names are not known here, and their values may start with a dash.

    Raises:
        UserError: an empty or second recipe, an option without a value, or an unknown stage.
    """
    recipe: str | None = None
    overrides: list[tuple[str, str]] = []
    dry_run, redo = False, None
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if word == "--dry-run":
            dry_run = True
            continue
        if not word.startswith("--"):
            if not word:
                raise UserError("the name of the recipe is empty; is a variable of the shell not set?")
            if recipe is not None:
                raise UserError(two.format(recipe, word))
            recipe = word
            continue
        value = value if has_value else _next_value(name, words)
        if name == "redo":
            redo = _stage(value)
        elif name not in ("local_rank", "local-rank"):  # added by DeepSpeed's launcher; the same as LOCAL_RANK
            overrides.append((name, value))
    return TrainArguments(recipe or DEFAULT_RECIPE, overrides, dry_run, redo)


def _next_value(name: str, words: list[str]) -> str:
    if not words or (words[0].startswith("--") and len(words[0]) > 2):
        raise UserError(f"--{name}: needs a value")
    return words.pop(0)


def _stage(text: str) -> str:
    if text not in (*STAGES, "all"):
        raise UserError(f"--redo: {text!r} is not a stage; use {', '.join(STAGES)} or all")
    return text
