"""A folder of results belongs to one model: those of another one would be reported as its own."""

from collections.abc import Collection

from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, read_object
from dcr_ds.recipe.layout import ModelFolder

MODEL = "model"  # the field of scores.json


def model_key(*parts: str | None) -> str:
    """A hash of what identifies a model, whatever the benchmark: its content, precision and chat template."""
    return hash_of(list(parts))


def refuse_other_model(folder: ModelFolder, benchmarks: Collection[str], key: str) -> None:
    """Raise UserError if the folder holds scores of another model on benchmarks that are not evaluated again.

    Scores that name no model, of earlier versions, pass.
    """
    kept = [name for name in folder.scored_benchmarks() if name not in benchmarks]
    others = [name for name in kept if read_object(folder.benchmark(name).scores).get(MODEL, key) != key]
    if others:
        raise UserError(
            f"{folder.folder}: holds results on {', '.join(others)} of another model, or of another precision or chat "
            "template, which a report would show as results of this one; use another folder or name, evaluate these "
            f"benchmarks, too, or remove {folder.folder / others[0]}" + (" and the others" if len(others) > 1 else "")
        )
