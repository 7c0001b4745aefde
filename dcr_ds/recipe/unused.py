"""Fields of a recipe that are set and that nothing reads, since the field that turns them on is left at its default."""

from collections.abc import Iterator

from dcr_ds.recipe.layout import TRAINING_STAGES
from dcr_ds.recipe.methods import PREFERENCE_TITLES
from dcr_ds.recipe.schema import Recipe

OF_BOTH = {"lora": ("adapter", "lora"), "packed_length": ("packing", "true")}
# field → what turns it on; refine.loss is circle by default, align.method is sft
SWITCHES = {
    "refine": OF_BOTH | {"temperature": ("loss", "supcon, infonce or ntxent")},
    "align": OF_BOTH | {method: ("method", method) for method in PREFERENCE_TITLES},
}


def unused_fields(recipe: Recipe) -> list[str]:
    """Warnings about fields without effect.

    None where both fields are set, as in a recipe that turns off what it extends, or in that of a run folder.

    Args:
        recipe: as requested, before any `auto` is resolved.
    """
    return [f"WARNING: {field} is set and has no effect without {switch}" for field, switch in _unused(recipe)]


def _unused(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for stage in (stage for stage in TRAINING_STAGES if stage in recipe.stages):
        is_set = getattr(recipe, stage).model_fields_set
        for field, (switch, value) in SWITCHES[stage].items():
            if field in is_set and switch not in is_set:
                yield f"{stage}.{field}", f"{stage}.{switch}: {value}"
    if "align" not in recipe.stages:
        return
    if "preferences" in recipe.data.model_fields_set and "method" not in recipe.align.model_fields_set:
        yield "data.preferences", f"align.method: {', '.join(PREFERENCE_TITLES)}"
    if recipe.align.safe_ratio != "auto" and recipe.align.method != "sft":
        yield "align.safe_ratio", "align.method: sft"
