"""Tables: rows of cells that keep their place in the file, so that error messages can name it."""

from dataclasses import dataclass
from typing import Any

from dcr_ds.errors import UserError

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl")
ENDINGS = (*TEXT_ENDINGS, ".parquet", *(ending + ".gz" for ending in TEXT_ENDINGS))


class RowError(UserError):
    """A row that cannot be used: its place ("line 7") and the problem. Readers count a few of them, and continue."""

    def __init__(self, message: str, place: str = "", problem: str = "") -> None:
        super().__init__(message)
        self.place, self.problem = place, problem


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table comes from: the field in the recipe, the path for messages, and the stem for ids of its rows."""

    field: str
    path: str
    stem: str

    def error(self, problem: str, place: str = "") -> UserError:
        """An error that names the field, the path and the place in the file."""
        return UserError(self._message(problem, place))

    def row_error(self, problem: str, place: str) -> RowError:
        """The error of a single row."""
        return RowError(self._message(problem, place), place, problem)

    def _message(self, problem: str, place: str) -> str:
        return f"{self.field}: {self.path}{', ' + place if place else ''}: {problem}"

    def setting(self, key: str, value: str) -> str:
        """How to set a key of this data set; benchmarks are list items, which the command line cannot set.

        A field that is an option, such as `--toxic`, names the file alone.
        """
        if self.field.startswith("--"):
            is_file = key == "source"
            return f"{self.field} {value}" if is_file else f"`{key}`, which only recipes set; here, change the file"
        if ".benchmarks." in self.field:
            return f"`{key}: {value}` under {self.field}"
        if "." not in self.field:  # a command, whose only key is `columns`
            return f"--columns {key.removeprefix('columns.')}={value}"
        return f"--{self.field}.{key} {value}"


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row, its place in the file ("line 7"), and its number, counted from 1."""

    origin: Origin
    place: str
    number: int
    cells: dict[str, Any]

    def error(self, problem: str) -> RowError:
        """An error that names the field, the path and the place of the row."""
        return self.origin.row_error(problem, self.place)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a source, and the names of all columns.

    `broken` are the rows that cannot be parsed; they count in the numbers of the other rows. `notes` say what else of
    the source is not in the rows.
    """

    origin: Origin
    columns: list[str]
    rows: list[Row]
    version: str | None = None  # of the source: SHA-256 of a file, commit of a hub data set
    broken: tuple[RowError, ...] = ()
    notes: tuple[str, ...] = ()


Parsed = tuple[str, dict[str, Any] | str]  # the place of a row, and its cells or why it cannot be parsed


def known_ending(filename: str) -> str | None:
    """The ending of a readable file, such as ".jsonl.gz"; None if the format is unknown."""
    return max((ending for ending in ENDINGS if filename.lower().endswith(ending)), key=len, default=None)


def refuse_doubled_names(names: list[str], origin: Origin, place: str = "") -> None:
    """Raise UserError if two columns have one name."""
    if doubled := next((name for name in names if name and names.count(name) > 1), None):
        raise origin.error(f"two columns have the name {doubled!r}; rename one", place)


def table_of(parsed: list[Parsed], origin: Origin, notes: tuple[str, ...] = ()) -> Table:
    """A table of rows, which may have different columns.

    Raises:
        UserError: there are no rows, or none that can be parsed.
    """
    if not parsed:
        raise origin.error("contains no rows")
    broken = tuple(origin.row_error(cells, place) for place, cells in parsed if isinstance(cells, str))
    rows = [
        Row(origin, place, number, cells)
        for number, (place, cells) in enumerate(parsed, 1)
        if not isinstance(cells, str)
    ]
    if not rows:
        raise broken[0]
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    return Table(origin, columns, rows, broken=broken, notes=notes)


def numbered(rows: list[Any]) -> list[Parsed]:
    """The rows of a format without lines, with their places; a row that is not an object cannot be parsed."""
    return [
        (f"row {number}", row if isinstance(row, dict) else f"a row must be an object, this is {kind_of(row)}")
        for number, row in enumerate(rows, 1)
    ]


def kind_of(value: Any) -> str:
    """The type of a JSON value, in words."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "binary data",
    }
    return names.get(type(value), f"a {type(value).__name__}")
