"""Read recipe files, merge them, override fields from the command line, and write them."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dcr_ds.errors import UserError
from dcr_ds.files import expand_user
from dcr_ds.recipe.annotations import inside, is_section, may_be_none, wants_text
from dcr_ds.recipe.messages import explain, refuse_unknown
from dcr_ds.recipe.schema import Recipe
from dcr_ds.recipe.shipped import shipped_file, shipped_files
from dcr_ds.recipe.urls import expand_variables, masked
from dcr_ds.recipe.yaml_files import read_yaml

MAX_EXTENDS = 20  # recipes that extend each other


def load_recipe(path: str | None, overrides: list[tuple[str, str]] | None = None) -> Recipe:
    """Read a recipe file, apply dotted overrides, and check the result.

    Args:
        path: a YAML file; None for the defaults of the schema.
        overrides: (dotted name, text) pairs, applied in order. The text is parsed as YAML; a plain value for a data
            set is its source.

    Raises:
        UserError: naming the field, where it was set (file and line, or command line) and what to do.
    """
    values, origins = _read_yaml(path) if path else ({}, {})
    for name, text in overrides or []:
        refuse_unknown(name, f"--{name}")
        put_field(values, name.split("."), _parse(name, text))
        origins[name] = "the command line"
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, origins)) from None


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML that `load_recipe` reads back to an equal one, except for the secrets of URLs."""
    return yaml.safe_dump(public_values(recipe), sort_keys=False, allow_unicode=True)


def public_values(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe as they are written to files: the secrets of URLs are masked."""
    return masked(recipe.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipe files, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "recipe to start from: next to this file, or a shipped one",
    }
    return schema


def find_file(name: str) -> Path | None:
    """A file named in a recipe: relative to the working folder, else one that comes with the project."""
    path = expand_user(expand_variables(name, "recipe"))
    return path if path.is_file() else shipped_file(name)


def _read_yaml(path: str, parents: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str]]:
    """The mapping in a YAML file, and the origin (file and line) of each of its dotted names.

    `extends` names another recipe to start from: relative to the file's folder, else one that comes with the project.
    """
    file = find_file(path)
    if file is None:
        if expand_user(path).is_dir():
            raise UserError(f"{path}: is a folder; name a recipe file in it")
        shipped = ", ".join(f"recipes/{recipe.name}" for recipe in shipped_files("recipes", ".yaml"))
        raise UserError(f"{path}: no such recipe file. Shipped: {shipped}")
    if file.resolve() in parents:
        raise UserError(f"{path}: extends itself, through {' and '.join(map(str, parents))}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a recipe is a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    values, node = read_yaml(text, path, Recipe)
    if values is None or node is None:
        return {}, {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe must be a mapping of fields, this is a {type(values).__name__}")
    origins: dict[str, str] = {}
    _add_origins(node, path, "", origins)
    if "extends" in values:
        base = values.pop("extends")
        if not base or not isinstance(base, str) or len(parents) > MAX_EXTENDS:
            raise UserError(f"{path}: extends: must name another recipe, got {str(base)[:80]!r}")
        neighbour = file.parent / expand_user(expand_variables(base, f"{path}: extends"))
        base_path = base if not neighbour.exists() and shipped_file(base) else str(neighbour)
        base_values, base_origins = _read_yaml(base_path, (*parents, file.resolve()))
        values, origins = _merge(base_values, values), base_origins | origins
    return values, origins


def _merge(base: dict, over: dict, annotation: Any = Recipe) -> dict:
    """`base` with the values of `over`, recursively.

    A data set that `base` gives as a plain source keeps it where `over` sets other fields of it.
    """
    merged = dict(base)
    for key, value in over.items():
        kept, kind = merged.get(key), inside(annotation, key)
        if isinstance(kept, str) and isinstance(value, dict) and is_section(kind):
            kept = {"source": kept}
        if isinstance(kept, dict) and isinstance(value, dict):
            value = _merge(kept, value, kind)
        merged[key] = value
    return merged


def _add_origins(node: yaml.Node, path: str, prefix: str, origins: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            origins[prefix + key.value] = f"{path}, line {key.start_mark.line + 1}"
            _add_origins(value, path, f"{prefix}{key.value}.", origins)


def _parse(name: str, text: str) -> Any:
    """The value of an override: text as it is written where the field takes text, else YAML."""
    annotation: Any = Recipe
    for key in name.split("."):
        annotation = inside(annotation, key)
    text = text.strip()
    is_quoted_or_list = text[:1] in ("[", "{", '"', "'")
    if wants_text(annotation) and not is_quoted_or_list:
        return None if text in ("", "~", "null") and may_be_none(annotation) else text
    try:
        return read_yaml(text, f"--{name}", annotation)[0]
    except UserError as error:
        if is_quoted_or_list:
            raise UserError(f"{error}, in {text[:80]!r}") from None
        return text


def put_field(values: dict, keys: list[str], value: Any) -> None:
    """Set a nested value. A data set given as a plain source becomes a mapping when one of its fields is set.

    Raises:
        UserError: it is a field of a DeepSpeed configuration that is a file.
    """
    for key in keys[:-1]:
        inner = values.get(key)
        if key == "deepspeed" and isinstance(inner, str):
            raise UserError(
                f"--{'.'.join(keys)}: deepspeed is the file {inner}; name another file, or give a whole mapping, as "
                "in --deepspeed '{zero_optimization: {stage: 3}}'"
            )
        if not isinstance(inner, dict):
            inner = {"source": inner} if isinstance(inner, str) else {}
        values[key] = inner
        values = inner
    old = values.get(keys[-1])
    if isinstance(old, dict) and isinstance(value, str) and "source" in old:
        value = {**old, "source": value}
    values[keys[-1]] = value
