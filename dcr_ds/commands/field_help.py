"""Help on the fields of recipes: an overview of the sections, and the fields of a section."""

import textwrap
from collections.abc import Sequence

from dcr_ds.commands.parser import WIDTH, refuse
from dcr_ds.recipe import (
    DataSource,
    FieldRow,
    GuardJudge,
    LlmJudge,
    NamedBenchmark,
    OwnBenchmark,
    Section,
    field_rows,
    section_rows,
)
from dcr_ds.recipe.describe import DATA_SET
from dcr_ds.recipe.messages import did_you_mean

# Fields that are lists of mappings → the kinds of mappings.
MAPPINGS: dict[str, tuple[type[Section], ...]] = {
    "evaluate.benchmarks": (NamedBenchmark, OwnBenchmark),
    "evaluate.judges": (LlmJudge, GuardJudge),
}
DATA_SET_HELP = (
    "A data set is a source, or a mapping with the fields below. On the command line:\n"
    "--data.toxic prompts.csv --data.toxic.rows 500 --data.toxic.columns.prompt goal\n"
    "--data.toxic.where.label unsafe"
)


def overview() -> str:
    """The sections and the fields outside of them, one line each."""
    top_level = [(f"--{row.name}", row.description) for row in field_rows() if "." not in row.name]
    return (
        f"Sections of fields (--help NAME lists the fields of one):\n{_table(section_rows())}\n\n"
        f"Fields outside the sections:\n{_table(top_level)}"
    )


def topic_help(topic: str) -> str:
    """All fields of a section, of a data set, or whose dotted name starts with `topic`; of all sections for `all`.

    Raises:
        UserError: there is no such section or field.
    """
    topic = topic.removeprefix("--")
    if topic == "all":
        return f"{overview()}\n\n{_fields(field_rows())}"
    rows = field_rows()
    inside = [row for row in rows if row.name == topic or row.name.startswith(f"{topic}.")]
    shown = inside or [row for row in rows if row.name.startswith(topic)]
    if not shown and any(row.type == DATA_SET and topic.startswith(f"{row.name}.") for row in rows):
        data_set, _, field = topic.rpartition(".")
        shown = [row for row in field_rows(DataSource, f"{data_set}.") if row.name == topic]
    if not shown:
        refuse("train", f"--help: no section or field {topic!r}.{did_you_mean(topic)}")
    title = next(
        (f"{section.name}: {section.description}\n\n" for section in section_rows() if section.name == topic), ""
    )
    return title + _fields(shown)


def _fields(rows: Sequence[FieldRow]) -> str:
    """Two or more lines per field, and below them the fields of the mappings that some of them hold."""
    blocks = [_field(row, "--") for row in rows]
    if any(row.type == DATA_SET for row in rows):
        blocks += ["", DATA_SET_HELP, *(_field(row) for row in field_rows(DataSource))]
    for row in rows:
        for model in MAPPINGS.get(row.name, ()):
            title = textwrap.fill(f"In {row.name}: {model.__doc__}", WIDTH)
            blocks += ["", title, *(_field(inner) for inner in field_rows(model))]
    return "\n".join(blocks)


def _field(row: FieldRow, dashes: str = "") -> str:
    default = f"; default: {row.default}" if row.default else ""
    head = textwrap.wrap(f"{dashes}{row.name}  ({row.type}{default})", WIDTH - 4, subsequent_indent="    ")
    description = textwrap.wrap(row.description, WIDTH - 8, break_on_hyphens=False)
    return "\n".join([*(f"  {line}" for line in head), *(f"      {line}" for line in description)])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """Names in one column, descriptions wrapped in the next."""
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, description in rows:
        first, *rest = textwrap.wrap(description, WIDTH - width - 4, break_on_hyphens=False) or [""]
        lines += [f"  {name:<{width}}  {first}", *(" " * (width + 4) + line for line in rest)]
    return "\n".join(lines)
