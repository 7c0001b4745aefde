"""Recipes from Python: found by name, and changed field by field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcr_ds.errors import UserError
from dcr_ds.recipe.messages import explain, refuse_unknown
from dcr_ds.recipe.reading import put_field
from dcr_ds.recipe.schema import Recipe
from dcr_ds.recipe.shipped import shipped_file


def find_recipe(name: str) -> str:
    """Return the path of a shipped recipe given by its name alone; any other name is returned as it is."""
    shipped = f"recipes/{name}.yaml"
    return shipped if not Path(name).exists() and shipped_file(shipped) else name


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a copy of a recipe with other values in some fields.

    Args:
        changes: value by dotted field name, e.g. `{"refine.layer": 12, "data.toxic": "prompts.csv"}`; a plain value for
            a data set is its source.

    Raises:
        UserError: a field does not exist, or a value is not allowed.
    """
    values = recipe.model_dump(mode="json")
    for name, value in changes.items():
        refuse_unknown(name, "change_recipe")
        put_field(values, name.split("."), str(value) if isinstance(value, Path) else value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, dict.fromkeys(changes, "change_recipe"))) from None
