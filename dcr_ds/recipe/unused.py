"""Fields of a recipe that have another value than their default and that nothing reads."""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from dcr_ds.recipe.methods import PREFERENCE_TITLES
from dcr_ds.recipe.schema import Recipe

Readers = dict[str, tuple[str, list[str | bool]]]
OF_BOTH: Readers = {"lora": ("adapter", ["lora"]), "packed_length": ("packing", [True])}
OF_A_PART = ("adapter", "packing")  # a recipe that sets them turns off what it extends, on purpose
# field → the field that decides whether it is read, and the values for which it is
READ_WITH: dict[str, Readers] = {
    "refine": OF_BOTH
    | {
        "form": ("loss", ["circle"]),
        "margin": ("loss", ["circle", "triplet"]),
        "scale": ("loss", ["circle"]),
        "temperature": ("loss", ["supcon", "infonce", "ntxent"]),
    },
    "align": OF_BOTH
    | {method: ("method", [method]) for method in PREFERENCE_TITLES}
    | {"safe_ratio": ("method", ["sft"])},
}


def unused_fields(recipe: Recipe) -> list[str]:
    """Warnings about fields without effect.

    Args:
        recipe: as requested, before any `auto` is resolved.
    """
    return [f"WARNING: {field} is set and has no effect without {switch}" for field, switch in _unused(recipe)]


def _unused(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for stage in recipe.training_stages:
        section = getattr(recipe, stage)
        for field, (switch, values) in READ_WITH[stage].items():
            is_off = switch in OF_A_PART and switch in section.model_fields_set
            if _is_changed(section, field) and getattr(section, switch) not in values and not is_off:
                yield f"{stage}.{field}", f"{stage}.{switch}: {_named(values)}"
    is_on_preferences = recipe.align.method in PREFERENCE_TITLES
    if "align" in recipe.stages and _is_changed(recipe.data, "preferences") and not is_on_preferences:
        yield "data.preferences", f"align.method: {_named(PREFERENCE_TITLES)}"


def _is_changed(section: BaseModel, field: str) -> bool:
    default = type(section).model_fields[field].get_default(call_default_factory=True)
    return getattr(section, field) != default


def _named(values: Iterable[str | bool]) -> str:
    return " or ".join(str(value).lower() for value in values)
