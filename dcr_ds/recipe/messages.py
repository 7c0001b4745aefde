"""What a recipe's fields are called and what is wrong with one: for --help, did-you-mean and errors."""

import difflib
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dcr_ds.errors import UserError
from dcr_ds.recipe.fields import DataSource
from dcr_ds.recipe.schema import Recipe


def field_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Every field of the schema as (dotted name, type, default, sentence), for --help and did-you-mean."""
    rows = []
    for name, field in model.model_fields.items():
        inner = _section_of(field.annotation)
        if inner and not issubclass(inner, DataSource):
            rows += field_rows(inner, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else field.default
        default = default.source if isinstance(default, DataSource) else default
        kind = "data set" if inner else _type_name(field.annotation)
        rows.append((prefix + name, kind, str(default), field.description or ""))
    return rows


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


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
    return annotation.__name__


def refuse_unknown(name: str, where: str) -> None:
    """Raise for a dotted name that the schema does not have, with the nearest one it has."""
    model: type[BaseModel] | None = Recipe
    for depth, key in enumerate(name.split(".")):
        if model is None:  # inside a mapping such as data.toxic.columns
            return
        if key not in model.model_fields:
            raise UserError(f"{where}: unknown field {name!r}.{_did_you_mean(name, key, depth)}")
        annotation = model.model_fields[key].annotation
        model = _section_of(annotation)


def _did_you_mean(name: str, key: str, depth: int) -> str:
    names = [row[0] for row in field_rows()]
    names += [f"{row[0]}.{field}" for row in field_rows() if row[1] == "data set" for field in DataSource.model_fields]
    names += list(Recipe.model_fields)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    near = near or [full for full in names if full.split(".")[-1] == key.split(".")[-1]][:1]
    return f" Did you mean {near[0]}?" if near else " `--help` lists the fields."


def explain(error: ValidationError, origins: dict[str, str]) -> str:
    """All that is wrong with a recipe, one line a field."""
    lines = []
    for problem in error.errors():
        combination = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
        keys = [str(key) for key in problem["loc"]]
        name = combination.partition(":")[0] or ".".join(key for key in keys if not _is_union_branch(key))
        where = next((origins[n] for n in _prefixes(name) if n in origins), "the defaults")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown field {name!r}.{_did_you_mean(name, name.split('.')[-1], 0)}")
        elif combination:
            lines.append(f"{where}: {combination}")
        else:
            got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
            lines.append(f"{where}: {name}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}")
    return "\n".join(dict.fromkeys(lines))


def _is_union_branch(key: str) -> bool:
    """Whether a part of an error's place names a branch of a union rather than a field."""
    return (
        key in ("int", "float", "str", "OwnBenchmark", "NamedBenchmark", "LlmJudge", "GuardJudge", "list[str]")
        or "[" in key
        or "constrained" in key
    )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
