"""Prompt sets: rows with a `prompt` and, where available, `id`, `label`, `category` and `pair`.

A prompt is text, or a list of messages that ends with the user's: a conversation whose last message is the prompt.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dcr_ds.data.columns import optional_text, required_text, row_id
from dcr_ds.data.messages import Messages, checked_messages
from dcr_ds.data.reader import Kind, Layout, LeftOut, read_data_set
from dcr_ds.data.records import Prompt, PromptSet
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

COLUMNS = ("prompt", "id", "label", "category", "pair")
CLASSES = ("seemingly_toxic", "toxic")
FIRST_HUMAN_TURN = re.compile(r"\s*Human:(.*?)(?=\n\nAssistant:|\n\nHuman:|\Z)", re.DOTALL)


def read_prompts(source: DataSource, name: str, field: str | None = None, is_benchmark: bool = False) -> PromptSet:
    """Read a prompt set; see `read_data_set`.

    A file whose labels are all `seemingly_toxic` or `toxic` can be the source of both stage-1 sets: each keeps its own
    rows. A benchmark takes every row, whatever its name.

    Args:
        is_benchmark: takes every row; if there is a column of ids, it must be filled, as runs are compared row by row.
    """
    kind = replace(PROMPTS, needs_ids=True, parser=partial(_parser, all_rows=True)) if is_benchmark else PROMPTS
    return read_data_set(kind, source, name, field)


def _parser(layout: Layout, all_rows: bool = False) -> Callable[[Row], Prompt | LeftOut]:
    column, label_column = layout.required("prompt"), layout.columns.get("label")
    has_both_classes = not all_rows and _has_both_classes(layout)

    def parse(row: Row) -> Prompt | LeftOut:
        if has_both_classes and optional_text(row, label_column) != layout.set_name:
            return LeftOut("label of the other class")
        context, text = _conversation(row, column)
        if layout.source.first_human_turn:
            text = _first_human_turn(text, row, column)
        label, category, pair = (optional_text(row, layout.columns.get(name)) for name in ("label", "category", "pair"))
        return Prompt(row_id(row, layout.columns.get("id")), text, label, category, pair, context)

    return parse


def _has_both_classes(layout: Layout) -> bool:
    """Whether the labels are the names of the stage-1 sets, so that only some rows belong to this set."""
    label, name = layout.columns.get("label"), layout.set_name
    if label is None or name not in CLASSES:
        return False
    labels = {optional_text(row, label) for row in layout.table.rows}
    if not labels <= set(CLASSES):
        return False
    if name not in labels:
        raise layout.table.origin.error(
            f"contains only one class: every {label!r} is {labels.pop()!r}, none is {name!r}; use another file for "
            f"{name}"
        )
    return True


def _conversation(row: Row, column: str) -> tuple[Messages, str]:
    """The messages before the prompt, and its text. A list of one text is the text, as SORRY-Bench stores prompts."""
    value = _parsed(row.cells.get(column))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        messages = checked_messages(value, column, row, last_role="user")
        return messages[:-1], messages[-1]["content"]
    unwrapped = value[0] if isinstance(value, list) and len(value) == 1 else value
    return (), required_text(replace(row, cells={**row.cells, column: unwrapped}), column)


def _parsed(value: Any) -> Any:
    """The messages that a cell of a CSV file holds as JSON; any other value as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return messages if messages and all(isinstance(item, dict) and "role" in item for item in messages) else value


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
