"""The columns of a table by our names: which there are, which are missing, and what a cell holds."""

from typing import Any

from dcr_ds.data.tables import Origin, Row, Table, kind_of
from dcr_ds.errors import UserError


def resolve_columns(table: Table, mapping: dict[str, str], known: tuple[str, ...]) -> dict[str, str]:
    """Our name → the source's name, for each of our columns that the source has.

    Raises:
        UserError: the mapping names a column that is not ours, or that the source does not have.
    """
    for ours, theirs in mapping.items():
        if ours not in known:
            raise table.origin.error(
                f"columns.{ours} is not one of ours; columns maps {', '.join(known)} to names of the source"
            )
        if theirs not in table.columns:
            raise missing_column(table, theirs, ours)
    wanted = {ours: mapping.get(ours, ours) for ours in known}
    return {ours: theirs for ours, theirs in wanted.items() if theirs in table.columns}


def missing_column(table: Table, theirs: str, ours: str) -> UserError:
    """The error for a column that is not there; it lists those that are and shows how to name one."""
    return table.origin.error(
        f"no column {theirs!r}; there are: {list_names(table.columns)}. "
        f"Name the one that holds it: {table.origin.setting(f'columns.{ours}', 'NAME')}"
    )


def list_names(names: list[str]) -> str:
    return ", ".join(name if name and name.isprintable() else repr(name) for name in names)


def required_text(row: Row, column: str, origin: Origin, may_be_empty: bool = False) -> str:
    """A cell that must hold text."""
    value = row.cells.get(column)
    if value is None:
        raise origin.error(f"{column!r} is missing; fill it in or take the row out", row.place)
    if not isinstance(value, str):
        raise origin.error(f"{column!r} must be text, this is {kind_of(value)}", row.place)
    if not value.strip() and not may_be_empty:
        raise origin.error(f"{column!r} is empty; fill it in or take the row out", row.place)
    return checked_text(value, column, row, origin)


def optional_text(row: Row, column: str | None, origin: Origin) -> str | None:
    """A cell that may be missing or empty, without the spaces around it; a number is taken as text."""
    if column is None:
        return None
    value = row.cells.get(column)
    if value is None or value != value:  # NaN: how pandas writes a missing cell
        return None
    if not isinstance(value, str | int | float):
        raise origin.error(f"{column!r} must be text or a number, this is {kind_of(value)}", row.place)
    return checked_text(cell_text(value), column, row, origin).strip() or None


def checked_text(text: str, column: str, row: Row, origin: Origin) -> str:
    """The text itself, unless it holds half of a surrogate pair; JSON can spell it, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = text[error.start].encode("ascii", "backslashreplace").decode()
        raise origin.error(f"{column!r} holds {broken}, which is half a character", row.place) from None
    return text


def cell_text(value: Any) -> str:
    """A cell as it is written in JSON, without quotes: true, 3 (of 3.0 too), safe; nothing for null."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
