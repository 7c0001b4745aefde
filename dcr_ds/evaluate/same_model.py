"""A folder of results belongs to one model: those of another one would be reported as its own."""

from collections.abc import Collection

from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, read_object
from dcr_ds.recipe.layout import ModelFolder

MODEL = "model"  # the field of scores.json


def model_key(*parts: str | None) -> str:
    """A hash of what identifies a model, whatever the benchmark: its content, precision and chat template."""
    return hash_of(list(parts))


def refuse_other_model(folder: ModelFolder, benchmarks: Collection[str], key: str, content: str | None = None) -> None:
    """Raise UserError if the folder holds results of another model that are not measured again here.

    Results that name no model, of earlier versions, pass.

    Args:
        benchmarks: those that are evaluated again.
        key: of `model_key`, as in scores.
        content: hash of the model, as `dcr-ds ability` records it; None for an endpoint, which it does not measure.
    """
    settings = read_object(folder.ability).get("settings")
    if isinstance(settings, dict) and settings.get(MODEL, content) != content:
        raise UserError(
            f"{folder.ability}: is of another model, and a report would show it as of this one; use another folder or "
            "name, or remove it and repeat dcr-ds ability"
        )
    kept = [name for name in folder.scored_benchmarks() if name not in benchmarks]
    others = [name for name in kept if read_object(folder.benchmark(name).scores).get(MODEL, key) != key]
    if others:
        raise UserError(
            f"{folder.folder}: holds results on {', '.join(others)} of another model, or of another precision or chat "
            "template, which a report would show as results of this one; use another folder or name, evaluate these "
            f"benchmarks, too, or remove {folder.folder / others[0]}" + (" and the others" if len(others) > 1 else "")
        )
