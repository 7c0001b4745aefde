"""The arguments of a run: a recipe, fields set by their dotted names, and what to do with it."""

from collections.abc import Sequence

from dcr_ds.errors import UserError
from dcr_ds.recipe import STAGES

DEFAULT_RECIPE = "recipes/smollm2-135m.yaml"


def parse_train(arguments: Sequence[str]) -> tuple[str, list[tuple[str, str]], bool, str | None]:
    """The recipe's path, (field, text) pairs, whether it is a dry run, and the stage to do again."""
    recipe: str | None = None
    options: list[tuple[str, str]] = []
    dry_run, redo = False, None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--dry-run":
            dry_run = True
            continue
        if not word.startswith("--"):
            if recipe is not None:
                raise UserError(f"two recipes: {recipe} and {word}; a field's value follows its --name")
            recipe = word
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError(f"--{name}: needs a value")
            value = rest.pop(0)
        if name in ("local_rank", "local-rank"):  # DeepSpeed's launcher adds it; the environment says the same
            continue
        if name == "redo":
            if value not in (*STAGES, "all"):
                raise UserError(f"--redo: {value!r} is no stage; use refine, align, evaluate or all")
            redo = value
            continue
        options.append((name, value))
    return recipe or DEFAULT_RECIPE, options, dry_run, redo
