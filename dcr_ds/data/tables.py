"""Parse file contents into rows of cells: csv, json, jsonl and parquet.

Every row keeps its place in the file, so that error messages can name it.
"""

import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass
from typing import Any

from dcr_ds.errors import UserError

TEXT_ENDINGS = (".csv", ".json", ".jsonl")
ENDINGS = (*TEXT_ENDINGS, ".parquet", *(ending + ".gz" for ending in TEXT_ENDINGS))
MAX_BYTES = 2 << 30  # of an unpacked file, which is held in memory
# text is packed to a tenth or so, a file that is made to fill the memory to a thousandth
SMALL_BYTES, MAX_RATIO = 1 << 26, 100
MAX_ROWS = 20_000_000
PARQUET_ROWS = 256  # that are unpacked at a time
LONGEST_CELL = 2**31 - 1  # the default of the csv module, 131,072 characters, is too small for long dialogues


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table comes from: the field in the recipe, the path for messages, and the stem for ids of its rows."""

    field: str
    path: str
    stem: str

    def error(self, problem: str, place: str = "") -> UserError:
        """An error that names the field, the path and the place in the file."""
        return UserError(f"{self.field}: {self.path}{', ' + place if place else ''}: {problem}")

    def setting(self, key: str, value: str) -> str:
        """How to set a key of this data set; benchmarks are list items, which the command line cannot set."""
        if ".benchmarks." in self.field:
            return f"`{key}: {value}` under {self.field}"
        return f"--{self.field}.{key} {value}"


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row, its place in the file ("line 7"), and its number, counted from 1."""

    origin: Origin
    place: str
    number: int
    cells: dict[str, Any]

    def error(self, problem: str) -> UserError:
        """An error that names the field, the path and the place of the row."""
        return self.origin.error(problem, self.place)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a source, and the names of all columns."""

    origin: Origin
    columns: list[str]
    rows: list[Row]
    version: str | None = None  # of the source: SHA-256 of a file, commit of a hub data set


def known_ending(filename: str) -> str | None:
    """The ending of a readable file, such as ".jsonl.gz"; None if the format is unknown."""
    return max((ending for ending in ENDINGS if filename.lower().endswith(ending)), key=len, default=None)


def parse_table(content: bytes, filename: str, origin: Origin) -> Table:
    """Parse the content of a file; the ending of its name decides the format.

    Raises:
        UserError: unknown ending, empty or corrupt file, text that is not UTF-8, invalid row.
    """
    ending = known_ending(filename)
    if ending is None:
        raise origin.error(f"unknown file format; data files end in {', '.join(ENDINGS)}")
    if ending.endswith(".gz"):
        content = _unzip(content, origin)
    if not content.strip():
        raise origin.error("the file is empty; it needs at least one row")
    kind = ending.removesuffix(".gz")
    if kind == ".parquet":
        return _parse_parquet(content, origin)
    text = _decode(content, origin)
    if kind == ".csv":
        return _parse_csv(text, origin)
    return _parse_json(text, origin) if kind == ".json" else _parse_json_lines(text, origin)


def table_of(cells: list[dict[str, Any]], places: list[str], origin: Origin) -> Table:
    """A table of rows given as mappings, which may have different keys."""
    if not cells:
        raise origin.error("contains no rows")
    columns = list(dict.fromkeys(column for row in cells for column in row))
    rows = [Row(origin, place, number, row) for number, (place, row) in enumerate(zip(places, cells, strict=True), 1)]
    return Table(origin, columns, rows)


def number_rows(cells: list[dict[str, Any]]) -> list[str]:
    """The places of the rows in a format without lines."""
    return [f"row {number}" for number in range(1, len(cells) + 1)]


def _unzip(content: bytes, origin: Origin) -> bytes:
    """Unpack a gzip file. One that unpacks to much more than text does is not unpacked to its end."""
    limit = min(MAX_BYTES, max(MAX_RATIO * len(content), SMALL_BYTES))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise origin.error(f"not a complete gzip file ({error}); copy or download it again") from None
    if len(unpacked) > limit:
        raise origin.error(
            f"unpacks from {len(content):,} bytes to more than {limit:,}, which is no data set; unpack it yourself if "
            "it is one"
        )
    return unpacked


def _decode(content: bytes, origin: Origin) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise origin.error(
            f"not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it as UTF-8, "
            "for example with `iconv -f WINDOWS-1252 -t UTF-8`",
            f"line {line}",
        ) from None


def _parse_csv(text: str, origin: Origin) -> Table:
    """Parse CSV: quoted fields may contain commas and line breaks, blank lines are skipped."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    cells, places = [], []
    next_line = 1
    try:
        for values in reader:
            line, next_line = next_line, reader.line_num + 1
            if not values:
                continue
            if not header:
                header = _csv_header(values, line, origin)
                continue
            if len(values) != len(header):
                raise origin.error(
                    f"{len(values)} fields, but the header has {len(header)}; "
                    'quote fields that contain a comma: "like, this"',
                    f"line {line}",
                )
            cells.append(dict(zip(header, values, strict=True)))
            places.append(f"line {line}")
    except csv.Error as error:
        raise origin.error(f"not valid CSV ({error}); check the quotes", f"line {next_line}") from None
    return table_of(cells, places, origin)


def _csv_header(values: list[str], line: int, origin: Origin) -> list[str]:
    header = [value.strip() for value in values]
    doubled = next((name for name in header if name and header.count(name) > 1), None)
    if doubled:
        raise origin.error(f"two columns have the name {doubled!r}; rename one", f"line {line}")
    return header


def _parse_json_lines(text: str, origin: Origin) -> Table:
    cells, places = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may occur inside a string
        if not line.strip():
            continue
        value = _load_json(line, origin, number)
        if not isinstance(value, dict):
            hint = "; a file that contains an array of rows must end in .json" if isinstance(value, list) else ""
            raise origin.error(f"a line must be a JSON object, this is {kind_of(value)}{hint}", f"line {number}")
        cells.append(value)
        places.append(f"line {number}")
    return table_of(cells, places, origin)


def _parse_json(text: str, origin: Origin) -> Table:
    """Parse an array of objects, or an object of columns (lists of equal length)."""
    value = _load_json(text, origin)
    if isinstance(value, dict):
        value = _rows_of_columns(value, origin)
    if not isinstance(value, list):
        raise origin.error(f"must contain an array of objects or an object of columns, this is {kind_of(value)}")
    for number, row in enumerate(value, 1):
        if isinstance(row, str):
            raise origin.error(
                'an array of plain strings; write {"prompt": [...]} around it, or use [{"prompt": "..."}, ...]',
                f"row {number}",
            )
        if not isinstance(row, dict):
            raise origin.error(f"a row must be an object, this is {kind_of(row)}", f"row {number}")
    return table_of(value, number_rows(value), origin)


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


def _load_json(text: str, origin: Origin, line: int | None = None) -> Any:
    """Parse JSON; `line` is the number of the line in the file, if the text is one of several lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise origin.error(f"not valid JSON ({error.msg})", place) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting a thousand deep
        raise origin.error(f"cannot be parsed as JSON ({error})", f"line {line or 1}") from None


def _parse_parquet(content: bytes, origin: Origin) -> Table:
    import pyarrow
    import pyarrow.parquet

    cells: list[dict[str, Any]] = []
    num_bytes = 0
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        for batch in file.iter_batches(PARQUET_ROWS):
            columns = [
                column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column
                for column in batch.columns
            ]
            num_bytes += sum(column.nbytes for column in columns)
            if num_bytes > MAX_BYTES or len(cells) > MAX_ROWS:
                raise origin.error(
                    f"unpacks to more than {MAX_BYTES >> 30} GiB or {MAX_ROWS:,} rows; use a part of the data set"
                )
            cells += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise origin.error(f"not a complete parquet file ({error}); copy or download it again") from None
    return table_of(cells, number_rows(cells), origin)


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
    }
    return names.get(type(value), f"a {type(value).__name__}")
