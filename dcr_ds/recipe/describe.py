"""The fields and sections of recipes as rows of text: for --help and for "did you mean"."""

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel

from dcr_ds.recipe.fields import DataSource
from dcr_ds.recipe.schema import Recipe

DATA_SET = "data set"  # the type of a field that is a DataSource


class FieldRow(NamedTuple):
    name: str  # dotted
    type: str
    default: str  # as YAML; empty without a default
    description: str


class SectionRow(NamedTuple):
    name: str  # dotted
    description: str


def field_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> list[FieldRow]:
    """All fields of a model in order; those of inner sections by their dotted names. A data set is one field."""
    rows = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section and not issubclass(section, DataSource):
            rows += field_rows(section, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else _as_yaml(field.default)
        kind = DATA_SET if section else _type_name(field.annotation)
        rows.append(FieldRow(prefix + name, kind, default, field.description or ""))
    return rows


def section_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> list[SectionRow]:
    """All sections of a model in order, each followed by its inner sections. A data set is not a section."""
    rows = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section and not issubclass(section, DataSource):
            rows += [SectionRow(prefix + name, field.description or ""), *section_rows(section, f"{prefix}{name}.")]
    return rows


def section_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _as_yaml(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, DataSource):
        split = f", split {default.split}" if default.split else ""
        return default.source + split
    return yaml.safe_dump(default, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    if get_args(annotation):  # a union
        names = dict.fromkeys(_type_name(kind) for kind in get_args(annotation) if kind is not type(None))
        return " | ".join(names)
    return "mapping" if section_of(annotation) else annotation.__name__
