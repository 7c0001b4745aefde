"""Read recipe files, merge them, override fields from the command line, and write them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dcr_ds.errors import UserError
from dcr_ds.files import expand_user
from dcr_ds.recipe.annotations import branches, inside, is_section, may_be_none, wants_text
from dcr_ds.recipe.describe import DATA_SET, field_rows
from dcr_ds.recipe.fields import DataSource
from dcr_ds.recipe.messages import explain, refuse_unknown
from dcr_ds.recipe.schema import Recipe
from dcr_ds.recipe.shipped import shipped_file, shipped_files, similar_recipe
from dcr_ds.recipe.urls import expand_variables, mask_secrets, masked
from dcr_ds.recipe.yaml_files import read_yaml

MAX_EXTENDS = 20  # recipes that extend each other
FIELDS = DataSource.model_fields


def load_recipe(path: str | None, overrides: list[tuple[str, str]] | None = None) -> Recipe:
    """Read a recipe file, apply dotted overrides, and check the result.

    Args:
        path: a YAML file; None for the defaults of the schema.
        overrides: (dotted name, text) pairs, applied in order. The text is parsed as YAML; a plain value for a data
            set is its source.

    Raises:
        UserError: naming the field, where it was set (file and line, or command line) and what to do.
    """
    values, origins, _ = _read(path, overrides or [])
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, origins)) from None


def kept_fields(path: str, overrides: list[tuple[str, str]]) -> list[str]:
    """Warnings about data sets with another source that keep fields, such as `columns`, of the one before."""
    return _read(path, overrides)[2]


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


def _read(path: str | None, overrides: list[tuple[str, str]]) -> tuple[dict, dict[str, str], list[str]]:
    """The values of a recipe file with overrides; see `_read_yaml`."""
    values, origins, notes = _read_yaml(path) if path else ({}, {}, [])
    before = deepcopy(values)
    for name, text in overrides:
        refuse_unknown(name, f"--{name}")
        put_field(values, name.split("."), _parse(name, text))
        origins[name] = "the command line"
    return values, origins, notes + _kept_fields(before, values, str(path))


def _read_yaml(path: str, parents: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str], list[str]]:
    """The mapping in a YAML file, the origin (file and line) of each of its dotted names, and `kept_fields`.

    `extends` names another recipe to start from: relative to the file's folder, else one that comes with the project.
    """
    file = find_file(path)
    if file is None:
        if expand_user(path).is_dir():
            raise UserError(f"{path}: is a folder; name a recipe file in it")
        shipped = ", ".join(f"recipes/{recipe.name}" for recipe in shipped_files("recipes", ".yaml"))
        raise UserError(f"{path}: no such recipe file.{similar_recipe(path)} Shipped: {shipped}")
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
        return {}, {}, []
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe must be a mapping of fields, this is a {type(values).__name__}")
    origins: dict[str, str] = {}
    notes: list[str] = []
    _add_origins(node, path, "", origins)
    if "extends" in values:
        base = values.pop("extends")
        if not base or not isinstance(base, str) or len(parents) > MAX_EXTENDS:
            raise UserError(f"{path}: extends: must name another recipe, got {str(base)[:80]!r}")
        neighbour = file.parent / expand_user(expand_variables(base, f"{path}: extends"))
        base_path = base if not neighbour.exists() and shipped_file(base) else str(neighbour)
        base_values, base_origins, notes = _read_yaml(base_path, (*parents, file.resolve()))
        values, origins = _merge(base_values, values), base_origins | origins
        notes = notes + _kept_fields(base_values, values, base_path)
    return values, origins, notes


def _merge(base: dict, over: dict, annotation: Any = Recipe) -> dict:
    """`base` with the values of `over`, recursively; an empty mapping that is no section, such as columns, clears it.

    A plain source is the `source` of a data set, whose other fields stay.
    """
    merged = dict(base)
    for key, value in over.items():
        kept, kind = merged.get(key), inside(annotation, key)
        if _is_data_set(kind) and kept is not None:
            kept, value = _with_fields(kept), _with_fields(value)
        if isinstance(kept, dict) and isinstance(value, dict) and (value or is_section(kind)):
            value = _merge(kept, value, kind)
        merged[key] = value
    return merged


def _is_data_set(annotation: Any) -> bool:
    return branches(annotation) == [DataSource]


def _with_fields(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _kept_fields(base: dict, values: dict, name: str) -> list[str]:
    """A warning per data set of `values` that has another source than in `base`, and fields from there.

    Args:
        name: of the recipe that `base` is of.
    """
    notes = []
    for field in (row.name for row in field_rows() if row.type == DATA_SET):
        before, now = _with_fields(_field(base, field)), _field(values, field)
        if not isinstance(before, dict) or not isinstance(now, dict):
            continue
        default = FIELDS["source"].default
        if (source := now.get("source", default)) == before.get("source", default):
            continue
        changed = {key for key, value in before.items() if key in FIELDS and value != FIELDS[key].default} - {"source"}
        if kept := [key for key in FIELDS if key in changed and now.get(key) == before[key]]:
            values_kept = ", ".join(f"{key}: {before[key]}" for key in kept)
            every_row = "; `rows: null` reads all rows" if "rows" in kept else ""
            notes.append(
                f"WARNING: {field}: {mask_secrets(str(source))} is read with {values_kept}, which {name} sets for "
                f"another source; set them, too, if they do not fit{every_row}"
            )
    return notes


def _field(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


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
    """Set a nested value. A plain source is the `source` of a data set; a mapping of a section sets its own fields.

    Raises:
        UserError: it is a field of a DeepSpeed configuration that is a file.
    """
    kind: Any = Recipe
    for key in keys[:-1]:
        inner, kind = values.get(key), inside(kind, key)
        if key == "deepspeed" and isinstance(inner, str):
            raise UserError(
                f"--{'.'.join(keys)}: deepspeed is the file {inner}; name another file, or give a whole mapping, as "
                "in --deepspeed '{zero_optimization: {stage: 3}}'"
            )
        if not isinstance(inner, dict):
            inner = {"source": inner} if isinstance(inner, str) else {}
        values[key] = inner
        values = inner
    old, kind = values.get(keys[-1]), inside(kind, keys[-1])
    if isinstance(old, dict) and (isinstance(value, str) if _is_data_set(kind) else is_section(kind)):
        value = _merge({keys[-1]: old}, {keys[-1]: value}, dict[str, kind])[keys[-1]]
    values[keys[-1]] = value
