"""Labelled answers: one answer to a prompt, desirable or not, as KTO is trained on (arXiv 2402.01306).

A row is a conversation in any form of conversations.py with a `label`, or a pair of preferences.py, whose chosen answer
is desirable and whose rejected one is not.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from dcr_ds.data.columns import cell_text
from dcr_ds.data.conversations import COLUMNS as CONVERSATION_COLUMNS
from dcr_ds.data.conversations import CONVERSATIONS, form_of
from dcr_ds.data.preferences import COLUMNS as PAIR_COLUMNS
from dcr_ds.data.preferences import PREFERENCES
from dcr_ds.data.reader import Kind, Layout, read_data_set
from dcr_ds.data.records import DataSet, LabelledAnswer, LabelledSet, Preference, digest
from dcr_ds.data.rows import LeftOut
from dcr_ds.data.tables import Row
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

COLUMNS = tuple(dict.fromkeys((*CONVERSATION_COLUMNS, "label", *PAIR_COLUMNS)))
DESIRABLE = ("true", "yes", "1", "desirable", "wanted", "chosen", "good", "positive", "thumbs_up")
UNDESIRABLE = ("false", "no", "0", "-1", "undesirable", "unwanted", "rejected", "bad", "negative", "thumbs_down")
LABELS = dict.fromkeys(DESIRABLE, True) | dict.fromkeys(UNDESIRABLE, False)
SHOWN = 40  # characters of an unknown label in a message


def read_labelled(source: DataSource, name: str = "preferences", field: str | None = None) -> LabelledSet:
    """Read labelled answers, or pairs as two labelled answers each; see `read_data_set`.

    A row with an unknown label or an empty answer is a bad row. The source's `rows` counts rows of the file.

    Raises:
        UserError: also if all answers have the same label.
    """
    read: DataSet[Preference | LabelledAnswer] = read_data_set(LABELLED, source, name, field)
    answers = [answer for row in read.rows for answer in _answers_of(row)]
    if len({answer.desirable for answer in answers}) == 1:
        found, missing = ("desirable", "undesirable") if answers[0].desirable else ("undesirable", "desirable")
        raise UserError(
            f"{field or f'data.{name}'}: {read.source}: all {len(answers)} answers are {found}; KTO needs both labels: "
            f"add {missing} answers, or map the column of labels with columns.label"
        )
    if both := _count_both(answers):
        read.notes.append(f"{both} answers are labelled both desirable and undesirable")
    same: Any = read
    return replace(same, rows=answers, sha256=digest(answers))


def _count_both(answers: Sequence[LabelledAnswer]) -> int:
    """The number of different answers that have both labels."""
    labels: dict[Hashable, set[bool]] = {}
    for answer in answers:
        labels.setdefault(_exchange(answer), set()).add(answer.desirable)
    return sum(len(given) == 2 for given in labels.values())


def _answers_of(row: Preference | LabelledAnswer) -> list[LabelledAnswer]:
    if isinstance(row, LabelledAnswer):
        return [row]
    return [
        LabelledAnswer(f"{row.id}/{name}", row.context, answer, name == "chosen", row.category)
        for name, answer in (("chosen", row.chosen), ("rejected", row.rejected))
    ]


def _parser(layout: Layout) -> Callable[[Row], Preference | LabelledAnswer | LeftOut]:
    if {"chosen", "rejected"} <= layout.columns.keys():
        return PREFERENCES.parser(layout)
    label_column = layout.required("label")
    answer_column = layout.columns[form_of(layout)[-1]]
    parse_conversation = CONVERSATIONS.parser(layout)

    def parse(row: Row) -> LabelledAnswer:
        conversation = parse_conversation(row)
        if isinstance(conversation, LeftOut):
            raise row.error(f"the answer in {answer_column!r} is empty; fill it in or remove the row")
        *context, answer = conversation.messages
        desirable = _label(row, label_column)
        return LabelledAnswer(conversation.id, tuple(context), answer["content"], desirable, conversation.category)

    return parse


def _label(row: Row, column: str) -> bool:
    text = cell_text(row.cells.get(column)).strip().lower().replace(" ", "_")
    if not text:
        raise row.error(f"{column!r} is missing; it says whether the answer is desirable: true or false")
    if text not in LABELS:
        raise row.error(
            f"{column!r} is {text[:SHOWN]!r}, which is no label; use true or false (or {', '.join(DESIRABLE[1:])}; "
            f"{', '.join(UNDESIRABLE[1:])})"
        )
    return LABELS[text]


def _content(row: Preference | LabelledAnswer) -> Hashable:
    return PREFERENCES.content(row) if isinstance(row, Preference) else (*_exchange(row), row.desirable)


def _exchange(row: LabelledAnswer) -> tuple[object, ...]:
    """The context and the answer, without the label."""
    return (*((message["role"], message["content"].strip()) for message in row.context), row.answer.strip())


LABELLED: Kind = Kind("rows", COLUMNS, _parser, _content)
