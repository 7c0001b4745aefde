"""The reader of every kind of data set: locate the table, resolve columns, parse rows, check them, select."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic

from dcr_ds.data.columns import list_names, missing_column, resolve_columns
from dcr_ds.data.markup import answer_notes, markup_notes
from dcr_ds.data.messages import unused_keys
from dcr_ds.data.records import DataSet, Omitted, Record, digest
from dcr_ds.data.rows import LeftOut, parse_rows
from dcr_ds.data.selection import draw_rows, filter_rows, refuse_doubled_ids, refuse_missing_ids, split_repeats
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Row, Table, kind_of
from dcr_ds.recipe import DataSource

CATEGORY = "category"  # a common name of columns of other kinds
REPEATED = "repeated"  # the reason why a row with the content of an earlier one is left out


@dataclass(frozen=True, slots=True)
class Layout:
    """A table with its columns by our names, and the settings of the data set. It records which columns are used."""

    table: Table
    columns: dict[str, str]  # our name → name in the source, for columns that exist
    source: DataSource
    set_name: str
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def column(self, name: str) -> str | None:
        """The source's name of an optional column; None if it is missing, or of another kind under the same name."""
        if name not in self.columns or (name == CATEGORY and name not in self.source.columns and self._is_nested(name)):
            return None
        return self.required(name)

    def required(self, name: str) -> str:
        """The source's name of a column; an error if the column is missing."""
        if name not in self.columns:
            raise missing_column(self.table, name, name)
        self.used.add(self.columns[name])
        return self.columns[name]

    def _is_nested(self, name: str) -> bool:
        """Whether all cells of a column hold lists or objects, as the categories of BeaverTails do; notes it."""
        cells = (row.cells.get(self.columns[name]) for row in self.table.rows)
        kinds = {kind_of(cell) for cell in cells if cell is not None}
        if not kinds or kinds - {"a list", "an object"}:
            return False
        note = f"the column {name!r} is not used, as it holds {' or '.join(sorted(kinds))}; to use another one: "
        note += self.table.origin.setting(f"columns.{name}", "NAME")
        if note not in self.notes:
            self.notes.append(note)
        return True


@dataclass(frozen=True, slots=True)
class Kind(Generic[Record]):
    """How one kind of data set is read.

    Attributes:
        plural: what its rows are called in messages.
        columns: our names of its columns.
        parser: checks which columns a table has, and returns the function that parses a row.
        content: what makes two records the same; repeats of a record are left out.
        needs_ids: a column of ids, if there is one, must be filled.
        takes_first_human_turn: whether the option `first_human_turn` applies.
        notes_unused: whether columns and keys of messages that are not used are noted.
    """

    plural: str
    columns: tuple[str, ...]
    parser: Callable[[Layout], Callable[[Row], Record | LeftOut]]
    content: Callable[[Record], Hashable]
    needs_ids: bool = False
    takes_first_human_turn: bool = False
    notes_unused: bool = True


def read_data_set(kind: Kind[Record], source: DataSource, name: str, field: str | None) -> DataSet[Record]:
    """Read a data set, check every row, and keep the rows that the source selects.

    Rows are left out, and counted in the notes, before rows are drawn, so that disjoint draws of one file share no
    record.

    Args:
        name: name of the set; decides which built-in set the source `builtin` means.
        field: dotted name of the field in the recipe, for messages (default: data.<name>).

    Raises:
        UserError: with the path, the line or row, the column, what is wrong and what to do.
    """
    table: Table = filter_rows(read_table(source, name, field or f"data.{name}"), source.where)
    if source.first_human_turn and not kind.takes_first_human_turn:
        raise table.origin.error("first_human_turn applies to prompt sets only; remove it")
    layout: Layout = Layout(table, resolve_columns(table, source.columns, kind.columns), source, name)
    id_column = layout.column("id")
    parse = kind.parser(layout)
    if kind.needs_ids:
        refuse_missing_ids(table, id_column)
    records, left_out = parse_rows(table, parse, kind.plural, source.max_bad_share)
    if not records:
        raise table.origin.error(f"no usable {kind.plural}: {'; '.join(omitted.note for omitted in left_out)}")
    distinct, repeats = split_repeats(records, kind.content)
    total = len(table.rows) + len(table.broken)
    if repeats:
        left_out.append(Omitted.of([row.place for row, _ in repeats], total, kind.plural, REPEATED))
    refuse_doubled_ids(distinct)
    notes = [omitted.note for omitted in left_out]
    notes += [*table.notes, *layout.notes]
    notes += _unused(layout) if kind.notes_unused and source.source != "builtin" else []
    notes += markup_notes([record.prompt for _, record in distinct], kind.plural)
    notes += answer_notes([(record.prompt, record.answers) for _, record in distinct], kind.plural)
    rows = draw_rows([record for _, record in distinct], source, table.origin)
    columns = {ours: theirs for ours, theirs in layout.columns.items() if theirs in layout.used}
    origin, version = table.origin.path, table.version
    return DataSet(name, origin, rows, digest(rows), notes, version, columns, total, len(rows), left_out)


def _unused(layout: Layout) -> list[str]:
    """Notes on the columns, and the keys of messages, that are not used, if there are any."""
    used = layout.used | set(layout.source.where)
    columns = [name for name in layout.table.columns if name and name not in used]
    cells = (row.cells.get(name) for row in layout.table.rows for name in layout.table.columns if name in layout.used)
    keys = unused_keys(cells)
    named = {"columns": columns, "keys of messages": keys}
    return [f"{kind} that are not used: {list_names(names)}" for kind, names in named.items() if names]
