"""Errors of recipes: what is wrong, where it was set, and the closest field name."""

import difflib
from typing import Any, get_origin

from pydantic import ValidationError

from dcr_ds.errors import UserError
from dcr_ds.recipe.annotations import branches
from dcr_ds.recipe.describe import DATA_SET, field_rows, section_of, section_rows
from dcr_ds.recipe.fields import DataSource
from dcr_ds.recipe.other_names import OTHER_NAMES
from dcr_ds.recipe.schema import Recipe
from dcr_ds.recipe.urls import mask_secrets

MAX_SHOWN = 200  # characters of a value in a message


def refuse_unknown(name: str, where: str) -> None:
    """Raise a UserError for a dotted name that is not in the schema; it suggests the closest name."""
    annotation: Any = Recipe
    for key in name.split("."):
        model = section_of(annotation)
        if any(get_origin(kind) is dict for kind in branches(annotation)):
            return  # inside a mapping such as data.toxic.columns
        if model is None or key not in model.model_fields:
            raise UserError(f"{where}: unknown field {name!r}.{did_you_mean(name)}")
        annotation = model.model_fields[key].annotation


def did_you_mean(name: str) -> str:
    """A sentence that suggests the closest field or section name, to append to a message."""
    rows = field_rows()
    names = [row.name for row in rows] + [section.name for section in section_rows()]
    names += [f"{row.name}.{field}" for row in rows if row.type == DATA_SET for field in DataSource.model_fields]
    section, last_key = name.partition(".")[0] if "." in name else "", name.split(".")[-1]
    if last_key == "resume_from_checkpoint":
        return " The same command resumes a run."
    if section in ("", "model", "refine", "align") and (elsewhere := OTHER_NAMES.get(last_key)):
        of_section = f"{section}.{elsewhere.partition('.')[2]}"  # refine.lr: that of refine
        return f" Did you mean {of_section if of_section in names else elsewhere}?"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close = close or [full for full in names if full.split(".")[-1] == last_key][:1]
    return f" Did you mean {close[0]}?" if close else " dcr-ds train --help lists the fields."


def explain(error: ValidationError, origins: dict[str, str]) -> str:
    """Everything that is wrong with a recipe, one line per field.

    Args:
        origins: dotted name → where it was set (file and line, or the command line).
    """
    lines = []
    for problem in error.errors():
        combination = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
        keys = [str(key) for key in problem["loc"]]
        name = combination.partition(":")[0] or ".".join(key for key in keys if not _is_union_branch(key))
        where = next((origins[n] for n in _prefixes(name) if n in origins), "the defaults")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown field {name!r}.{did_you_mean(name)}")
        elif combination:
            lines.append(f"{where}: {combination}")
        else:
            given_value = "" if problem["type"] == "missing" else f" (got {_shown(problem['input'])})"
            lines.append(f"{where}: {name}: {_expected(problem, name)}{given_value}")
    return "\n".join(dict.fromkeys(lines))


def _expected(problem: Any, name: str) -> str:
    """What a value must be."""
    given = problem["input"]
    if problem["type"] == "list_type":
        return f"must be a list, such as [{given if isinstance(given, str) and given else 'a, b'}]"
    if problem["type"] == "model_type":
        fields = [row.name for row in field_rows() if row.name.startswith(f"{name}.")]
        example = f": set its fields, such as {fields[0]}" if fields and given else ""
        return f"must be a mapping of fields{example or '; leave it out if it sets none'}"
    return problem["msg"][0].lower() + problem["msg"][1:]


def _shown(value: Any) -> str:
    """A value for a message; one of thousands of characters or digits is cut."""
    try:
        text = mask_secrets(repr(value))
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _is_union_branch(key: str) -> bool:
    """Whether a part of an error's location names a branch of a union, not a field."""
    return (
        key in ("int", "float", "str", "OwnBenchmark", "NamedBenchmark", "LlmJudge", "GuardJudge", "list[str]")
        or "[" in key
        or "constrained" in key
    )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
