"""Rows of JSON: an array of objects, an object of columns, an object around the rows, or one object per line.

The content decides between one value and lines; the name of the file does not matter.
"""

import json
from collections.abc import Callable
from typing import Any

from dcr_ds.data.tables import Origin, Parsed, Table, kind_of, numbered, table_of
from dcr_ds.files import DoubledKey, with_unique_keys

Unwrap = Callable[[dict[str, Any]], list[dict[str, Any]] | None]  # an object → its rows; None for an unknown object


class _NotJson(Exception):
    """What is wrong, and its place in the text, if it is known."""

    def __init__(self, problem: str, line: int | None, column: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = "" if line is None else f"line {line}" if column is None else f"line {line}, column {column}"


def parse_json_text(text: str, origin: Origin, by_lines: bool, unwrap: Unwrap) -> Table:
    """Parse a .json file, or a .jsonl file (`by_lines`); either may have the form of the other.

    Args:
        unwrap: the rows of an object in another program's form.

    Raises:
        UserError: no rows, or a text that is neither form.
    """
    # not splitlines: U+2028 may be in texts
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    starts_with_object = isinstance(_parsed_or_none(lines[0][1]), dict)
    if starts_with_object and len(lines) > 1:
        return _table_of_lines(lines, origin)
    try:
        value = _load(text)
    except _NotJson as error:
        if by_lines or sum(isinstance(_parsed_or_none(line), dict) for _, line in lines) > len(lines) / 2:
            return _table_of_lines(lines, origin)
        raise origin.error(error.problem, error.place) from None
    if isinstance(value, dict) and (rows := unwrap(value)) is not None:
        return table_of(numbered(rows), origin)
    if by_lines and starts_with_object and "data" not in _lists_of_objects(value)[0]:
        return table_of([(f"line {lines[0][0]}", value)], origin)
    return _table_of_value(value, origin)


def begins_with_object(text: str) -> bool:
    """Whether the first line of a text is a JSON object, whatever the name of the file."""
    return text.lstrip().startswith("{") and isinstance(_parsed_or_none(text.lstrip().partition("\n")[0]), dict)


def _table_of_lines(lines: list[tuple[int, str]], origin: Origin) -> Table:
    parsed: list[Parsed] = []
    for number, line in lines:
        try:
            value = _load(line, number)
        except _NotJson as error:
            parsed.append((error.place, error.problem))
            continue
        is_object = isinstance(value, dict)
        parsed.append((f"line {number}", value if is_object else f"must be a JSON object, this is {kind_of(value)}"))
    return table_of(parsed, origin)


def _table_of_value(value: Any, origin: Origin) -> Table:
    notes: tuple[str, ...] = ()
    if isinstance(value, dict):
        value, notes = _rows_of_object(value, origin)
    if not isinstance(value, list):
        raise origin.error(f"must contain an array of objects or an object of columns, this is {kind_of(value)}")
    if value and all(isinstance(row, str) for row in value):
        raise origin.error(
            'an array of plain strings; write {"prompt": [...]} around it, or use [{"prompt": "..."}, ...]', "row 1"
        )
    return table_of(numbered(value), origin, notes)


def _lists_of_objects(value: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The names of an object's values that are lists of rows, and of those that are the messages of a conversation."""
    names = [
        name
        for name, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    ]
    messages = [name for name in names if all("role" in item or "from" in item for item in value[name])]
    return [name for name in names if name not in messages], messages


def _rows_of_object(value: dict[str, Any], origin: Origin) -> tuple[list[Any], tuple[str, ...]]:
    """The rows of {"data": [...]}, of an object of columns, or a single row; and a note on what is next to the rows."""
    nested, messages = _lists_of_objects(value)
    if "data" in nested or len(nested) == 1 == sum(isinstance(items, list) for items in value.values()):
        name = "data" if "data" in nested else nested[0]
        others = ", ".join(other for other in value if other != name)
        return value[name], (f"values next to the rows in {name!r} are not used: {others}",) if others else ()
    if len(nested) == len(value) > 1:
        raise origin.error(f"several lists of rows ({', '.join(nested)}); write each to a file of its own")
    if value and all(isinstance(item, dict) for item in value.values()):
        raise origin.error("an object of objects; write an array of rows, with pandas: to_json(path, orient='records')")
    if messages or (value and not any(isinstance(item, list) for item in value.values())):
        return [value], ()
    return _rows_of_columns(value, origin), ()


def _rows_of_columns(columns: dict[str, Any], origin: Origin) -> list[dict[str, Any]]:
    """Rows of an object of columns; empty columns are ignored."""
    for name, values in columns.items():
        if not isinstance(values, list):
            raise origin.error(f"an object of columns must contain lists, {name!r} is {kind_of(values)}")
    columns = {name: values for name, values in columns.items() if values}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise origin.error(f"the columns differ in length: {shown}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parsed_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _load(text: str, line: int | None = None) -> Any:
    """Parse JSON; `line` is the number of the line in the file, if the text is one of several lines."""
    try:
        return json.loads(text, object_pairs_hook=with_unique_keys)
    except DoubledKey as error:
        raise _NotJson(f"an object is ambiguous ({error}); remove one of the two", line) from None
    except json.JSONDecodeError as error:
        raise _NotJson(f"not valid JSON ({error.msg})", line or error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting a thousand deep
        raise _NotJson(f"cannot be parsed as JSON ({error})", line or 1) from None
