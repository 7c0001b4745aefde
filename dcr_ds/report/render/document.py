"""The content of a report before it is written as Markdown or HTML: sections of blocks, all text unescaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """A value in a table; `details`, such as its interval, are in smaller print; `share` (0 to 1) is drawn as a bar."""

    text: str
    details: tuple[str, ...] = ()
    is_best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Rows by group; the title of a single group is empty. `header` names the columns after the first.

    is_folded: the page shows only the caption until the table is opened.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    groups: list[tuple[str, list[Row]]]
    is_folded: bool = False


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Bullets:
    kind: ClassVar[str] = "bullets"
    items: list[str]


@dataclass(frozen=True)
class Commands:
    kind: ClassVar[str] = "commands"
    lines: list[str]


@dataclass(frozen=True)
class Figure:
    """A drawing, inline as SVG and as a PNG file (relative to the report; None: not drawn).

    name: prefix of the ids in the drawing, unique in the page. alternative: what it shows, in words.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    alternative: str
    svg: str
    png: str | None


@dataclass(frozen=True)
class Reply:
    """The answer of one model, with the label of each judge."""

    model: str
    labels: list[str]
    text: str


@dataclass(frozen=True)
class Example:
    prompt: str
    replies: list[Reply]


@dataclass(frozen=True)
class Examples:
    """Examples of one kind of change; answers to harmful prompts are folded in the page."""

    kind: ClassVar[str] = "examples"
    title: str
    are_harmful: bool
    examples: list[Example]


Block = Table | Paragraph | Bullets | Commands | Figure | Examples


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Document:
    title: str
    headline: str
    content_note: str  # before anything else
    warnings: list[str]  # what makes the results doubtful, above the sections
    sections: list[Section]


def plain_table(caption: str, rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text, first row the header."""
    body = [Row(name, [Cell(text) for text in cells]) for name, *cells in rows[1:]]
    return Table(caption, list(rows[0][1:]), [("", body)])
