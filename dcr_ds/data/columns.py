"""The columns of a table by our names, and the text in its cells."""

import difflib
import re
from typing import Any

from dcr_ds.data.tables import Row, Table, kind_of
from dcr_ds.errors import UserError

MAX_SHOWN = 20  # column names in a message
LONGEST = 60  # characters of a column name in a message
INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")  # space, zero-width characters, byte order marks
WORDS_OF_DATA = 4  # a name of so many words is a text rather than a name
HEADER_IS_DATA = ". If the first line is a row, not a header, put a line with the names of the columns above it"


def resolve_columns(table: Table, mapping: dict[str, str], known: tuple[str, ...]) -> dict[str, str]:
    """Our name → the source's name, for each of our columns that the source has.

    Args:
        mapping: `columns` of the recipe, our name → the source's name.
        known: our names.

    Raises:
        UserError: the mapping contains an unknown name, or names a column that the source does not have.
    """
    for column, source_column in mapping.items():
        if column not in known:
            raise table.origin.error(
                f"columns.{column}: unknown column; columns maps {', '.join(known)} to column names of the source"
            )
        if source_column not in table.columns:
            raise missing_column(table, source_column, column)
    names = {column: mapping.get(column, column) for column in known}
    return {column: name for column, name in names.items() if name in table.columns}


def missing_column(table: Table, source_column: str, column: str) -> UserError:
    """The error for a missing column; it lists the columns and shows how to map one."""
    return table.origin.error(
        f"no column {source_column!r}; columns: {list_names(table.columns, source_column)}. "
        f"Map the right one with {table.origin.setting(f'columns.{column}', 'NAME')}" + header_hint(table)
    )


def header_hint(table: Table) -> str:
    """What to do if the names of the columns look like the first row of data; otherwise ''."""
    return HEADER_IS_DATA if any(len(name.split()) >= WORDS_OF_DATA for name in table.columns) else ""


def list_names(names: list[str], wanted: str = "") -> str:
    """Column names for a message, at most 20, those similar to `wanted` first; unprintable ones are quoted."""
    similar = difflib.get_close_matches(wanted, names, n=3) if len(names) > MAX_SHOWN else []
    shown = [*similar, *(name for name in names if name not in similar)][:MAX_SHOWN]
    listed = ", ".join(name[:LONGEST] if name and name.isprintable() else repr(name[:LONGEST]) for name in shown)
    return (listed or "none") + (f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else "")


def row_id(row: Row, column: str | None) -> str:
    """The row's own id, or the file's stem and the number of the row in the file."""
    return optional_text(row, column) or f"{row.origin.stem}-{row.number}"


def required_text(row: Row, column: str, may_be_empty: bool = False) -> str:
    """A cell that must contain text."""
    value = row.cells.get(column)
    if value is None:
        raise row.error(f"{column!r} is missing; fill it in or remove the row")
    if not isinstance(value, str):
        raise row.error(f"{column!r} must be text, this is {kind_of(value)}")
    if not may_be_empty and is_blank(value):
        raise row.error(f"{column!r} is empty; fill it in or remove the row")
    return checked_text(value, column, row)


def optional_text(row: Row, column: str | None) -> str | None:
    """A cell that may be missing or empty, stripped; numbers are converted to text."""
    if column is None:
        return None
    value = row.cells.get(column)
    if value is None or value != value:  # NaN is a missing cell in pandas
        return None
    if not isinstance(value, str | int | float):
        raise row.error(f"{column!r} must be text or a number, this is {kind_of(value)}")
    return checked_text(cell_text(value), column, row).strip() or None


def is_blank(text: str) -> bool:
    """Whether nothing of a text is visible."""
    return INVISIBLE.fullmatch(text) is not None


def checked_text(text: str, column: str, row: Row) -> str:
    """The text, which must not contain unpaired surrogates: JSON can express them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = text[error.start].encode("ascii", "backslashreplace").decode()
        raise row.error(f"{column!r} contains {surrogate}, an unpaired surrogate; correct the text") from None
    return text


def cell_text(value: Any) -> str:
    """A cell as JSON writes it, without quotes: true, 3 (also for 3.0), safe; empty for null."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
