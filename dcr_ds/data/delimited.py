"""Rows of text files: csv and tsv with a header, and txt with one prompt per line."""

import csv
import io
import re

from dcr_ds.data.tables import Origin, Parsed, Table, refuse_doubled_names, table_of

LONGEST_CELL = 2**31 - 1  # the default of the csv module, 131,072 characters, is too small for long dialogues
LONGEST_HEADER = 1 << 16
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
SHOWN = 5  # columns in a message on a row
SPACE = " \t\ufeff"  # around a name of a column; joined files may have a byte order mark within


def parse_delimited(text: str, origin: Origin, default: str) -> Table:
    """Parse CSV or TSV: quoted fields may contain delimiters and line breaks, blank lines are skipped.

    Another delimiter than the name of the file says (semicolons, as spreadsheets write them, tabs or vertical bars) is
    recognised by the header.

    Raises:
        UserError: no rows, two columns of one name, or a quote that is not closed.
    """
    csv.field_size_limit(LONGEST_CELL)
    delimiter = _delimiter(text, default)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    parsed: list[Parsed] = []
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem = f"not valid CSV ({error}); check the quotes"
            if reader.line_num > line or not header:  # a quote that is closed by that of another row, or by none
                raise origin.error(problem, f"line {line}") from None
            parsed.append((f"line {line}", problem))
            continue
        is_blank = not any(values) and len(values) != 1
        if is_blank or (not header and values[0] == "sep="):  # "sep=;" names the delimiter for spreadsheets
            continue
        if not header:
            header = _header(values, line, origin)
            continue
        while len(values) > len(header) and not values[-1]:  # a delimiter at the end of the row
            values.pop()
        wrong = _wrong_fields(values, header, delimiter)
        parsed.append((f"line {line}", wrong or dict(zip(header, values, strict=True))))
    if not parsed:
        shown = ", ".join(repr(name) for name in header[:SHOWN])
        raise origin.error(f"contains no rows, only the line {shown}; the first line must name the columns")
    return table_of(parsed, origin)


def _delimiter(text: str, default: str) -> str:
    """The default, unless it leaves the header in one piece and another delimiter divides it."""
    first = text.lstrip(" \r\n")[:LONGEST_HEADER].splitlines()[0]  # a first column without a name may leave a tab
    numbers = {}
    for delimiter in dict.fromkeys((default, *DELIMITERS)):
        try:
            numbers[delimiter] = len(next(csv.reader([first], delimiter=delimiter)))
        except csv.Error:
            numbers[delimiter] = 1
    return default if numbers[default] > 1 else max(numbers, key=lambda delimiter: numbers[delimiter])


def _header(values: list[str], line: int, origin: Origin) -> list[str]:
    header = [value.strip() for value in values]
    refuse_doubled_names(header, origin, f"line {line}")
    return header


def _wrong_fields(values: list[str], header: list[str], delimiter: str) -> str | None:
    """What is wrong with a row of fields."""
    if any("\0" in value for value in values):
        return "contains a NUL byte; remove it"
    if [value.strip(SPACE) for value in values] == header:
        return "repeats the header, as in files that were joined; remove the line"
    if len(values) == len(header):
        return None
    fields = f"{len(values)} field{'' if len(values) == 1 else 's'}, but the header has {len(header)}"
    if len(values) < len(header):
        missing = ", ".join(header[len(values) :][:SHOWN])
        return f"{fields}; add what is missing ({missing}), and quote a text that contains a line break"
    name = DELIMITERS[delimiter]
    advice = f'quote fields that contain a {name}: "like{delimiter} this"'
    if len(header) == 1:
        advice += "; or name the file .txt, without a header, if each line is a prompt"
    return f"{fields}; {advice}"


def _is_header(line: str) -> bool:
    """Whether a line names columns, `prompt` among them."""
    names = [name.strip(' "').lower() for name in re.split(f"[{''.join(DELIMITERS)}]", line)]
    return "prompt" in names and all(name.isidentifier() for name in names)


def parse_lines(text: str, origin: Origin) -> Table:
    """A table with the column `prompt`: each line that is not blank is a prompt.

    Raises:
        UserError: the lines are JSON, or the first one names columns.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if all(line[0] + line[-1] in ("{}", "[]") for _, line in lines):
        raise origin.error(
            "each line of a .txt file is a prompt, and these lines are JSON; name the file .jsonl, or .json"
        )
    if _is_header(lines[0][1]):
        raise origin.error(
            "each line of a .txt file is a prompt, and this one is a header; name the file .csv, or remove the line",
            f"line {lines[0][0]}",
        )
    return table_of(
        [
            (f"line {number}", "contains a NUL byte; remove it" if "\0" in line else {"prompt": line})
            for number, line in lines
        ],
        origin,
    )
