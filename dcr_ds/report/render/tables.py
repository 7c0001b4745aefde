"""Tables of text: aligned, as Markdown or for a terminal; and how numbers are written."""

import re
from collections.abc import Sequence

NOTHING = "–"
MAX_WORDS = 80  # characters of a label or category
MAX_NAME = 38  # characters of the first column on a terminal: leaves room for three of results
ESCAPED = str.maketrans({character: "\\" + character for character in r"\`*[]<>|#~$&@"})

Rows = Sequence[Sequence[str]]


def markdown_table(rows: Rows) -> str:
    """A Markdown table, first row the header: first column left, the others right, aligned as plain text too.

    Cells are written as they are; text goes through `literal` first.
    """
    rows = [list(map(one_line, row)) for row in rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = [_pad(rows[0], widths), rule, *(_pad(row, widths) for row in rows[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text_table(rows: Rows, width: int = 100) -> str:
    """A table for a terminal, at most `width` characters wide; columns that do not fit are put below."""
    rows = [[cut_middle(one_line(row[0]), MAX_NAME), *map(one_line, row[1:])] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    blocks: list[list[int]] = []
    for column in range(1, len(widths)):
        used = widths[0] + sum(2 + widths[other] for other in blocks[-1]) if blocks else width
        if used + 2 + widths[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_block([[row[i] for i in (0, *block)] for row in rows]) for block in blocks)


def literal(text: str) -> str:
    """Text as Markdown that shows it literally: no markup, no HTML, no link made of a bare address."""
    # An underscore between letters is no markup; escaped, it would make names of files hard to read.
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text.translate(ESCAPED))
    return re.sub(r"(?i)(://|(?<=\bwww)\.)", r"\\\1", escaped)


def shortened(text: str, limit: int = 200) -> str:
    """Text from outside as one line, cut to a length."""
    return _cut(" ".join(text.split()), limit)


def one_line(text: str) -> str:
    """Text from outside without line breaks and control characters, which would break a table or a terminal."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def words(name: str) -> str:
    """A label or category as words, cut to a length."""
    return shortened(one_line(name.replace("_", " ")), MAX_WORDS)


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{100 * share:.{digits}f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, with a sign (none at zero) and a true minus."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def signed(value: float | None, digits: int = 2) -> str:
    """A difference as a decimal number, with a sign (none at zero) and a true minus."""
    if value is None:
        return NOTHING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if not float(text.replace("−", "-")) else text


def number(value: float | None, digits: int = 3) -> str:
    """A decimal number with a typographic minus, or a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def gibibytes(size: float | None) -> str:
    return NOTHING if size is None else f"{size / 2**30:.2f} GiB"


def _block(rows: Rows) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(_pad(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _pad(row: Sequence[str], widths: list[int]) -> list[str]:
    others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return [row[0].ljust(widths[0]), *others]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def cut_middle(text: str, limit: int) -> str:
    """Cut where a name is least telling: its start and the metric after it stay."""
    return text if len(text) <= limit else f"{text[: limit - 18]}…{text[-17:]}"
