"""Prompt sets: rows with a `prompt` and, where available, `id`, `label`, `category` and `pair`.

A prompt is text, or a list of messages that ends with the user's: a conversation whose last message is the prompt.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dcr_ds.data.columns import optional_text, row_id
from dcr_ds.data.messages import Messages, context_of, refuse_tools, with_history, with_system
from dcr_ds.data.reader import Kind, Layout, read_data_set
from dcr_ds.data.records import Prompt, PromptSet
from dcr_ds.data.rows import LeftOut
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

COLUMNS = ("prompt", "id", "label", "category", "pair", "system", "history", "tools")
CLASSES = ("seemingly_toxic", "toxic")
SHOWN, LONGEST = 5, 40  # labels in a message, and characters of one
FIRST_HUMAN_TURN = re.compile(r"\s*Human:(.*?)(?=\n\nAssistant:|\n\nHuman:|\Z)", re.DOTALL)


def read_prompts(source: DataSource, name: str, field: str | None = None, is_benchmark: bool = False) -> PromptSet:
    """Read a prompt set; see `read_data_set`.

    A file whose labels are all `seemingly_toxic` or `toxic` can be the source of both stage-1 sets: each keeps its own
    rows. A benchmark takes every row, whatever its name.

    Args:
        is_benchmark: takes every row; if there is a column of ids, it must be filled, as runs are compared row by row.
    """
    kind = PROMPTS
    if is_benchmark:
        kind = replace(PROMPTS, needs_ids=True, notes_unused=False, parser=partial(_parser, all_rows=True))
    return read_data_set(kind, source, name, field)


def _parser(layout: Layout, all_rows: bool = False) -> Callable[[Row], Prompt | LeftOut]:
    column, label = layout.required("prompt"), layout.column("label")
    id_column, category, pair = (layout.column(name) for name in ("id", "category", "pair"))
    system, history, tools = (layout.column(name) for name in ("system", "history", "tools"))
    has_both_classes = not all_rows and _has_both_classes(layout)

    def parse(row: Row) -> Prompt | LeftOut:
        if has_both_classes and _class_of(row, label) != layout.set_name:
            return LeftOut("label of the other class")
        refuse_tools(row, tools)
        messages = with_system(with_history(_messages(row, column), row, history), row, system)
        context, text = messages[:-1], messages[-1]["content"]
        if layout.source.first_human_turn:
            text = _first_human_turn(text, row, column)
        optional = [optional_text(row, name) for name in (label, category, pair)]
        return Prompt(row_id(row, id_column), text, optional[0], optional[1], optional[2], context)

    return parse


def _has_both_classes(layout: Layout) -> bool:
    """Whether the labels are the names of the stage-1 sets, so that only some rows belong to this set.

    Notes labels of other words, by which no row is left out.
    """
    label, name, origin = layout.column("label"), layout.set_name, layout.table.origin
    if label is None or name not in CLASSES:
        return False
    labels = Counter(_label_of(row, label) for row in layout.table.rows)
    if not labels.keys() & {other for other in CLASSES if other != name}:
        if len(labels) > 1 and label not in layout.source.where:
            shown = ", ".join(f"{text or 'none'!r} ({count})" for text, count in labels.most_common(SHOWN))
            setting = origin.setting(f"where.{label}", "VALUE")
            layout.notes.append(f"rows of all labels are read as {name}: {shown}; to select some: {setting}")
        return False
    if name not in labels:
        raise origin.error(
            f"contains only one class: every {label!r} is {labels.most_common(1)[0][0]!r}, none is {name!r}; use "
            f"another file for {name}"
        )
    return True


def _class_of(row: Row, column: str | None) -> str:
    if (text := _label_of(row, column)) not in CLASSES:
        raise row.error(f"{column!r} is {text[:LONGEST]!r}, and that of other rows {' or '.join(CLASSES)}; correct it")
    return text


def _label_of(row: Row, column: str | None) -> str:
    """The label in lower case, its words joined as in the names of the sets; '' if there is none."""
    return re.sub(r"[\s-]+", "_", (optional_text(row, column) or "").lower())


def _messages(row: Row, column: str) -> Messages:
    """The prompt as messages that end with the user's. A list of one text is that text, as SORRY-Bench has them."""
    value = row.cells.get(column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        row = replace(row, cells={**row.cells, column: value[0]})
    return context_of(row, column)


def _content(prompt: Prompt) -> tuple[str, ...]:
    """The texts of all messages; prompts that differ only in earlier turns are different."""
    return tuple(message["content"].strip() for message in prompt.messages)


def _first_human_turn(text: str, row: Row, column: str) -> str:
    turn = FIRST_HUMAN_TURN.match(text)
    if turn is None:
        raise row.error(f'{column!r} must begin with "Human:" because first_human_turn is set')
    if not turn[1].strip():
        raise row.error(f"the first human turn of {column!r} is empty; remove the row")
    return turn[1].strip()


PROMPTS = Kind("prompts", COLUMNS, _parser, _content, takes_first_human_turn=True)
