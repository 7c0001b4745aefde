"""Which rows of a table are used: filter, names of rows, repeats, draw."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

from dcr_ds.data.columns import cell_text, list_names, optional_text
from dcr_ds.data.tables import Origin, Row, Table
from dcr_ds.recipe import DataSource

Record = TypeVar("Record")


class HasId(Protocol):
    """A record of a data set, known by its id."""

    @property
    def id(self) -> str: ...


def filter_rows(table: Table, where: dict[str, str | list[str]]) -> Table:
    """The rows whose cells hold one of the wanted values, in every column named.

    Columns go by the source's names. A value is compared as it is written in JSON (`true`, `3`); a cell that
    is a list holds each of its items.
    """
    for column in where:
        if column not in table.columns:
            raise table.origin.error(f"where: no column {column!r}; there are: {list_names(table.columns)}")
    wanted = {column: {values} if isinstance(values, str) else set(values) for column, values in where.items()}
    rows = [row for row in table.rows if all(_values(row, column) & wanted[column] for column in wanted)]
    if not rows:
        held = "; ".join(f"{column!r} holds {_common_values(table, column)}" for column in where)
        raise table.origin.error(f"no row left after where {where}: {held}")
    return Table(table.origin, table.columns, rows)


def _values(row: Row, column: str) -> set[str]:
    value: Any = row.cells.get(column)
    return {cell_text(item) for item in value} if isinstance(value, list) else {cell_text(value)}


def _common_values(table: Table, column: str, limit: int = 5) -> str:
    counts = Counter(value for row in table.rows for value in _values(row, column))
    shown = ", ".join(f"{value!r} ({count})" for value, count in counts.most_common(limit))
    return shown + (f" and {len(counts) - limit} other values" if len(counts) > limit else "")


def row_id(row: Row, column: str | None, origin: Origin) -> str:
    """The row's own id, or the file's stem and the number of the row in it."""
    return optional_text(row, column, origin) or f"{origin.stem}-{row.number}"


def drop_repeats(
    records: list[tuple[Row, Record]], key: Callable[[Record], Hashable], what: str
) -> tuple[list[tuple[Row, Record]], list[str]]:
    """The first of each key, and a note of how many were left out."""
    first: dict[Hashable, tuple[Row, Record]] = {}
    for row, record in records:
        first.setdefault(key(record), (row, record))
    count = len(records) - len(first)
    return list(first.values()), [f"{count} repeated {what} left out"] if count else []


def refuse_missing_ids(table: Table, column: str | None) -> None:
    """Raise if a column of ids leaves some row without one."""
    for row in table.rows if column is not None else []:
        if optional_text(row, column, table.origin) is None:
            raise table.origin.error(f"{column!r} is missing; give every row an id, or take the column out", row.place)


def refuse_doubled_ids(records: Sequence[tuple[Row, HasId]], origin: Origin) -> None:
    """Raise if two rows have one id: an id names a row in every file of a run."""
    seen: dict[str, Row] = {}
    for row, record in records:
        if record.id in seen:
            raise origin.error(
                f"the id {record.id!r} is that of {seen[record.id].place} too; ids must differ "
                f"(another column may hold them: {origin.setting('columns.id', 'NAME')})",
                row.place,
            )
        seen[record.id] = row


def draw_rows(records: list[Record], source: DataSource, origin: Origin) -> list[Record]:
    """All rows in file order, or `rows` of them drawn with `seed`, after leaving out `skip` of the draw.

    Draws of one file with one seed are disjoint where [skip, skip + rows) are.
    """
    if source.rows is None and not source.skip:
        return records
    wanted = source.skip + (source.rows or 1)
    if wanted > len(records):
        asked = f"rows {source.rows}" if source.rows else "at least one row"
        raise origin.error(f"{asked} after skip {source.skip} asks for {wanted} rows, and there are {len(records)}")
    shuffled = list(records)
    random.Random(source.seed).shuffle(shuffled)
    return shuffled[source.skip : source.skip + source.rows] if source.rows else shuffled[source.skip :]
