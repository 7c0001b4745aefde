"""Parse file contents into tables: csv, tsv, txt, json, jsonl and parquet, as UTF-8 or UTF-16, also gzipped."""

import gzip
import io
import zlib
from typing import Any

from dcr_ds.data.delimited import parse_delimited, parse_lines
from dcr_ds.data.json_tables import Unwrap, begins_with_object, parse_json_text
from dcr_ds.data.tables import ENDINGS, Origin, Table, known_ending, numbered, refuse_doubled_names, table_of
from dcr_ds.errors import UserError, first_line

MAX_BYTES = 2 << 30  # of an unpacked file, which is held in memory
# text is packed to a tenth or so, a file that is made to fill the memory to a thousandth
SMALL_BYTES, MAX_RATIO = 1 << 26, 100
MAX_ROWS = 20_000_000
PARQUET_ROWS = 256  # that are unpacked at a time
EMPTY = "the file is empty; it needs at least one row"
MANY = 10  # intact characters outside ASCII, per damaged one, in a file that is UTF-8 all the same
FEWEST_ZEROS = 3  # of a text in UTF-16 without a byte order mark
GZIP = b"\x1f\x8b"
# first bytes of files that are often renamed or saved by mistake
OTHER_CONTENTS = {
    GZIP: "is packed with gzip twice; unpack it once",
    b"(\xb5/\xfd": "is packed with Zstandard; unpack it first, with `zstd -d`",
    b"BZh": "is packed with bzip2; unpack it first, with `bunzip2`",
    b"\xfd7zXZ": "is packed with xz; unpack it first, with `unxz`",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it first, or save the sheet as CSV (UTF-8)",
    b"ARROW1": "is an Arrow file; save it as parquet, with datasets: Dataset.to_parquet(path)",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<!DOCTYPE": "is a web page; download the file itself (the raw file, not the page that shows it)",
    b"<html": "is a web page; download the file itself (the raw file, not the page that shows it)",
}
OTHER_ENDINGS = {
    ".xlsx": "save the sheet as CSV (UTF-8)",
    ".xls": "save the sheet as CSV (UTF-8)",
    ".zst": "unpack it first, with `zstd -d`",
    ".bz2": "unpack it first, with `bunzip2`",
    ".xz": "unpack it first, with `unxz`",
    ".zip": "unpack it first",
    ".arrow": "save it as parquet, with datasets: Dataset.to_parquet(path)",
    ".ndjson": "name it .jsonl",
    ".eval": "logs of inspect are read by `dcr-ds judge`",
}


def parse_table(content: bytes, filename: str, origin: Origin, unwrap: Unwrap = lambda value: None) -> Table:
    """Parse the content of a file; the ending of its name decides the format.

    Args:
        unwrap: the rows of a JSON object in another program's form.

    Raises:
        UserError: unknown ending, empty or corrupt file, text in another encoding, no row that can be parsed.
    """
    ending = known_ending(filename)
    if ending is None:
        raise unknown_format(filename, origin)
    if ending.endswith(".gz") or content.startswith(GZIP):  # also packed without .gz in the name
        content = _unzip(content, origin)
    if not content.strip(b"\0"):
        raise origin.error(EMPTY)
    head = content[:200].lstrip().lower()
    for start, problem in OTHER_CONTENTS.items():
        if head.startswith(start.lower()):
            raise origin.error(problem)
    kind = ending.removesuffix(".gz")
    if kind == ".parquet" or content.startswith(b"PAR1"):
        return _parse_parquet(content, origin)
    text = _decode(content, origin)
    if not text.strip():
        raise origin.error(EMPTY)
    if kind in (".csv", ".tsv") and not begins_with_object(text):
        return parse_delimited(text, origin, default="," if kind == ".csv" else "\t")
    if "\n" not in text:
        text = text.replace("\r", "\n")  # line breaks of old spreadsheets
    if kind == ".txt":
        return parse_lines(text, origin)
    return parse_json_text(text, origin, kind != ".json", unwrap)


def unknown_format(filename: str, origin: Origin) -> UserError:
    """The error for a file whose ending is unknown."""
    hint = next((f"; {hint}" for ending, hint in OTHER_ENDINGS.items() if filename.lower().endswith(ending)), "")
    return origin.error(f"unknown file format{hint}; data files end in {', '.join(ENDINGS)}")


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
    """The text of a file in UTF-8 or UTF-16, with or without a byte order mark."""
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8-sig" and (text := _damaged_text(content)) is not None:
            return text
        line = error.object[: error.start].count(b"\n") + 1
        raise origin.error(
            f"not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it as UTF-8, for example with "
            "`iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE`",
            f"line {line}",
        ) from None


def _damaged_text(content: bytes) -> str | None:
    """UTF-8 with few damaged characters, as unpaired surrogates, which make their rows bad; None: another encoding."""
    text = content.decode("utf-8-sig", "surrogateescape")
    damaged = sum("\udc80" <= character <= "\udcff" for character in text)
    return text if sum(character > "\x7f" for character in text) - damaged >= MANY * damaged else None


def _encoding(content: bytes) -> str:
    """UTF-16 and UTF-32 begin with a byte order mark, or UTF-16 has zeros as every second byte of ASCII characters."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = content[:1000:2].count(0), content[1:1000:2].count(0)
    if len(content) % 2 == 0 and min(even, odd) == 0 and max(even, odd) >= FEWEST_ZEROS and 0 in content[:2]:
        return "utf-16-le" if odd else "utf-16-be"
    return "utf-8-sig"


def _parse_parquet(content: bytes, origin: Origin) -> Table:
    import pyarrow
    import pyarrow.parquet

    cells: list[dict[str, Any]] = []
    num_bytes = 0
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        refuse_doubled_names(file.schema_arrow.names, origin)
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
        if not content.startswith(b"PAR1"):
            raise origin.error(
                "not a parquet file, although its name says so; give it the ending of its format"
            ) from None
        reason = first_line(error)
        raise origin.error(f"not a complete parquet file ({reason}); copy or download it again") from None
    return table_of(numbered(cells), origin)
