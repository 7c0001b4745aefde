"""A report as Markdown that is also readable as plain text; external text is shown literally."""

from functools import singledispatch

from dcr_ds.report.render.document import Bullets, Cell, Commands, Document, Examples, Figure, Paragraph, Table
from dcr_ds.report.render.tables import Rows, literal, markdown_table, one_line, shortened

MAX_EXAMPLE = 300  # characters of a prompt or an answer; the page has the rest


def markdown_text(document: Document) -> str:
    blocks = [f"# {literal(document.title)}", f"Content note: {literal(document.content_note)}"]
    blocks += [f"**Warning:** {literal(warning)}" for warning in document.warnings]
    blocks += [f"**{literal(document.headline)}**"] if document.headline else []
    for section in document.sections:
        blocks += [f"## {section.title}", *(written(block) for block in section.blocks)]
    return "\n\n".join(blocks) + "\n"


def table_rows(table: Table) -> Rows:
    """A table as rows of text, first row the header, without captions and the titles of groups."""
    rows = [row for _, group in table.groups for row in group]
    return [["", *table.header], *([row.name, *map(_plain_cell, row.cells)] for row in rows)]


def _plain_cell(cell: Cell) -> str:
    return f"{cell.text} ({'; '.join(cell.details)})" if cell.details else cell.text


@singledispatch
def written(block) -> str:
    """A block as Markdown."""
    raise TypeError(f"no Markdown for {type(block).__name__}")


@written.register
def _(block: Paragraph) -> str:
    return literal(block.text)


@written.register
def _(block: Bullets) -> str:
    return "\n".join(f"- {literal(one_line(item))}" for item in block.items)


@written.register
def _(block: Commands) -> str:
    return "\n".join(["```", *block.lines, "```"])


@written.register
def _(block: Table) -> str:
    rows = [["", *map(literal, block.header)]]
    for title, group in block.groups:
        rows += [[f"*{literal(title)}*", *[""] * len(block.header)]] if title else []
        rows += [[literal(row.name), *map(_marked_cell, row.cells)] for row in group]
    return f"{literal(block.caption)}\n\n{markdown_table(rows)}"


def _marked_cell(cell: Cell) -> str:
    text = f"**{literal(cell.text)}**" if cell.is_best else literal(cell.text)
    return f"{text} ({literal('; '.join(cell.details))})" if cell.details else text


@written.register
def _(block: Figure) -> str:
    alternative = literal(block.alternative)
    return f"{f'![{alternative}]({block.png})' if block.png else alternative}\n\n{literal(block.caption)}"


@written.register
def _(block: Examples) -> str:
    lines = [f"### {literal(block.title)}"]
    for example in block.examples:
        replies = [
            f"  - {literal(reply.model)}, {literal('; '.join(reply.labels))}: "
            f"{literal(shortened(reply.text, MAX_EXAMPLE)) or '(nothing)'}"
            for reply in example.replies
        ]
        lines.append("\n".join([f"- **{literal(shortened(example.prompt, MAX_EXAMPLE))}**", *replies]))
    return "\n\n".join(lines)
