"""The reader of every kind of data set: locate the table, resolve columns, parse rows, check them, select."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic

from dcr_ds.data.columns import missing_column, resolve_columns
from dcr_ds.data.records import DataSet, Record, digest
from dcr_ds.data.selection import draw_rows, drop_repeats, filter_rows, refuse_doubled_ids, refuse_missing_ids
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Row, Table
from dcr_ds.recipe import DataSource


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is left out. Rows left out for the same reason are counted in one note."""

    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A table with its columns by our names, and the settings of the data set."""

    table: Table
    columns: dict[str, str]  # our name → name in the source, for columns that exist
    source: DataSource
    set_name: str

    def required(self, column: str) -> str:
        """The source's name of a column; an error if the column is missing."""
        if column not in self.columns:
            raise missing_column(self.table, column, column)
        return self.columns[column]


@dataclass(frozen=True, slots=True)
class Kind(Generic[Record]):
    """How one kind of data set is read.

    Attributes:
        plural: what its rows are called in messages.
        columns: our names of its columns.
        parser: checks which columns a table has, and returns the function that parses a row.
        content: what makes two records the same; repeats of a record are left out.
        check: raises on records that cannot all be right.
        needs_ids: a column of ids, if there is one, must be filled.
        takes_first_human_turn: whether the option `first_human_turn` applies.
    """

    plural: str
    columns: tuple[str, ...]
    parser: Callable[[Layout], Callable[[Row], Record | LeftOut]]
    content: Callable[[Record], Hashable]
    check: Callable[[list[tuple[Row, Record]]], None] = lambda records: None
    needs_ids: bool = False
    takes_first_human_turn: bool = False


def read_data_set(kind: Kind[Record], source: DataSource, name: str, field: str | None = None) -> DataSet[Record]:
    """Read a data set, check every row, and keep the rows that the source selects.

    Rows are left out, and counted in the notes, before rows are drawn, so that disjoint draws of one file share no
    record.

    Args:
        name: name of the set; decides which built-in set the source `builtin` means.
        field: dotted name of the field in the recipe, for messages (default: data.<name>).

    Raises:
        UserError: with the path, the line or row, the column, what is wrong and what to do.
    """
    table = filter_rows(read_table(source, name, field or f"data.{name}"), source.where)
    if source.first_human_turn and not kind.takes_first_human_turn:
        raise table.origin.error("first_human_turn applies to prompt sets only; remove it")
    columns = resolve_columns(table, source.columns, kind.columns)
    parse = kind.parser(Layout(table, columns, source, name))
    if kind.needs_ids:
        refuse_missing_ids(table, columns.get("id"))
    parsed = [(row, parse(row)) for row in table.rows]
    records = [(row, record) for row, record in parsed if not isinstance(record, LeftOut)]
    reasons = Counter(record.reason for _, record in parsed if isinstance(record, LeftOut))
    total = f"{len(table.rows)} {kind.plural}"
    notes = [f"{count} of {total} left out: {reason}" for reason, count in reasons.items()]
    if not records:
        raise table.origin.error(f"no usable {kind.plural}: {'; '.join(notes)}")
    kind.check(records)
    distinct = drop_repeats(records, kind.content)
    if repeats := len(records) - len(distinct):
        notes.append(f"{repeats} of {total} left out: repeated")
    refuse_doubled_ids(distinct)
    rows = draw_rows([record for _, record in distinct], source, table.origin)
    return DataSet(name, table.origin.path, rows, digest(rows), notes, table.version)
