"""Which rows of a table are used: filter, repeats, ids, draw."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from dcr_ds.data.columns import cell_text, list_names, optional_text
from dcr_ds.data.tables import Origin, Row, Table
from dcr_ds.recipe import DataSource

SHOWN_VALUES = 5  # of a column in a message
Record = TypeVar("Record")


class HasId(Protocol):
    """A record with an id."""

    @property
    def id(self) -> str: ...


def filter_rows(table: Table, where: dict[str, str | list[str]]) -> Table:
    """The rows whose cells contain an accepted value in every column of `where`.

    Columns have the source's names. A value is compared as JSON writes it (`true`, `3`), without space around it; a
    cell that is a list contains each of its items. A note counts values of another case, which are not selected.
    """
    for column in where:
        if column not in table.columns:
            raise table.origin.error(f"where: no column {column!r}; columns: {list_names(table.columns, column)}")
    accepted = {column: _accepted(values) for column, values in where.items()}
    rows = [row for row in table.rows if all(_values(row, column) & accepted[column] for column in accepted)]
    notes = [note for column, values in accepted.items() for note in _other_case(table, column, values)]
    if not rows:
        contents = "; ".join(f"{column!r} contains {_common_values(table, column)}" for column in where)
        raise table.origin.error(f"no row matches where {where}: {contents}")
    return replace(table, rows=rows, notes=(*table.notes, *notes))


def _other_case(table: Table, column: str, accepted: set[str]) -> list[str]:
    """A note on values that differ from the accepted ones in case alone, if there are any."""
    folded = {text.casefold() for text in accepted}
    others = (text for row in table.rows for text in _values(row, column) - accepted)
    counts = Counter(text for text in others if text.casefold() in folded)
    listed = ", ".join(f"{text!r} ({count})" for text, count in counts.most_common())
    return [f"where: {column!r} is also {listed}, which is not selected, as the case differs"] if listed else []


def _accepted(values: str | list[str]) -> set[str]:
    """Accepted cells; True stands for JSON's true, too."""
    texts = {text.strip() for text in ([values] if isinstance(values, str) else values)}
    return texts | {text.lower() for text in texts if text.lower() in ("true", "false")}


def _values(row: Row, column: str) -> set[str]:
    value = row.cells.get(column)
    return {cell_text(item).strip() for item in (value if isinstance(value, list) else [value])}


def _common_values(table: Table, column: str) -> str:
    counts = Counter(value for row in table.rows for value in _values(row, column))
    shown = ", ".join(f"{value!r} ({count})" for value, count in counts.most_common(SHOWN_VALUES))
    return shown + (f" and {len(counts) - SHOWN_VALUES} other values" if len(counts) > SHOWN_VALUES else "")


def split_repeats(
    records: list[tuple[Row, Record]], content: Callable[[Record], Hashable]
) -> tuple[list[tuple[Row, Record]], list[tuple[Row, Record]]]:
    """The first record of each content, and the others."""
    distinct: list[tuple[Row, Record]] = []
    repeats: list[tuple[Row, Record]] = []
    known: set[Hashable] = set()
    for row, record in records:
        key = content(record)
        (repeats if key in known else distinct).append((row, record))
        known.add(key)
    return distinct, repeats


def refuse_missing_ids(table: Table, column: str | None) -> None:
    """Raise if there is a column of ids and a row has none."""
    for row in table.rows if column is not None else []:
        if optional_text(row, column) is None:
            raise row.error(f"{column!r} is missing; give every row an id, or remove the column")


def refuse_doubled_ids(records: Sequence[tuple[Row, HasId]], advice: str | None = None) -> None:
    """Raise if two rows have the same id: ids identify rows in every file of a run.

    Args:
        advice: what to do; None: to use another column.
    """
    first: dict[str, Row] = {}
    for row, record in records:
        if record.id in first:
            advice = advice or f"to use another column: {row.origin.setting('columns.id', 'NAME')}"
            raise row.error(
                f"the id {record.id!r} is also that of {first[record.id].place}; ids must be unique ({advice})"
            )
        first[record.id] = row


def draw_rows(records: list[Record], source: DataSource, origin: Origin) -> list[Record]:
    """All rows in file order, or `rows` of them drawn with `seed`, skipping the first `skip` of the draw.

    Draws of one file with one seed are disjoint if their ranges [skip, skip + rows) are.
    """
    if source.rows is None and not source.skip:
        return records
    needed = source.skip + (source.rows or 1)
    if needed > len(records):
        setting = f"rows: {source.rows}" if source.rows else "at least one row"
        raise origin.error(
            f"{setting} with skip: {source.skip} needs {needed} rows, but there are {len(records)}; "
            f"lower it, or read all with {origin.setting('rows', 'null')}"
        )
    shuffled = list(records)
    random.Random(source.seed).shuffle(shuffled)
    return shuffled[source.skip : source.skip + source.rows] if source.rows else shuffled[source.skip :]
