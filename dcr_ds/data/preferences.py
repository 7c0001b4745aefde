"""Preferences: two answers to one prompt, the better (`chosen`) and the worse (`rejected`).

Three forms, told apart by what is in the columns:
- `prompt` (text, or messages that end with the user's) and both answers (text, or one assistant message);
- both whole conversations as messages; a `prompt` beside them is not looked at;
- both whole transcripts of Human and Assistant, and no `prompt`, as Anthropic's HH-RLHF has them (arXiv 2204.05862).
"""

import re
from dataclasses import dataclass
from typing import Any

from dcr_ds.data.columns import missing_column, optional_text, required_text, resolve_columns
from dcr_ds.data.messages import Messages, checked_messages
from dcr_ds.data.records import Preference, PreferenceSet, digest
from dcr_ds.data.selection import draw_rows, drop_repeats, filter_rows, refuse_doubled_ids, row_id
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Origin, Row
from dcr_ds.recipe import DataSource

COLUMNS = ("id", "category", "prompt", "chosen", "rejected")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SHOWN = 5  # rows listed in an error


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two conversations of a row; empty for a transcript that is not one."""

    chosen: Messages
    rejected: Messages

    def fault(self) -> str:
        """Why the pair is left out, as the end of a note; "" where it is not."""
        if not self.chosen or not self.rejected:
            return "are no dialogue of Human and Assistant in turn"
        if self.chosen[:-1] != self.rejected[:-1]:
            return "part before the last answer"
        if not self.chosen[-1]["content"].strip() or not self.rejected[-1]["content"].strip():
            return "have an empty answer"
        return ""


def read_preferences(source: DataSource, name: str = "preferences", field: str | None = None) -> PreferenceSet:
    """Read pairs of answers, check every row, and keep the rows that the source asks for.

    Pairs with an empty answer, those whose conversations part earlier, and repeats are left out and counted, before
    the draw.

    Args:
        field: dotted name of the field in the recipe, for messages (default: data.<name>).

    Raises:
        UserError: naming the path, the line or row, the column, what is wrong and the way out; among others where
            chosen and rejected are the same answer, which teaches nothing and is a mistake in the data.
    """
    table = filter_rows(read_table(source, name, field or f"data.{name}"), source.where)
    origin = table.origin
    if source.first_human_turn:
        raise origin.error("first_human_turn is for prompt sets; preferences need their answers")
    columns = resolve_columns(table, source.columns, COLUMNS)
    for needed in ("chosen", "rejected"):
        if needed not in columns:
            raise missing_column(table, needed, needed)
    pairs = [(row, _pair(row, columns, origin)) for row in table.rows]
    faults = [pair.fault() for _, pair in pairs]
    whole = [pair for pair, fault in zip(pairs, faults, strict=True) if not fault]
    if not whole:
        raise origin.error(f"no pair is left: its rows {max(faults, key=faults.count)}; see docs/PREFERENCES.md")
    _refuse_equal_answers(whole, origin)
    records = [(row, _preference(row, pair, columns, origin)) for row, pair in whole]
    records, repeats = drop_repeats(records, key=_content, what="pairs")
    refuse_doubled_ids(records, origin)
    rows = draw_rows([preference for _, preference in records], source, origin)
    left_out = [f"{faults.count(fault)} pairs left out: they {fault}" for fault in dict.fromkeys(faults) if fault]
    return PreferenceSet(name, origin.path, rows, digest(rows), left_out + repeats)


def _pair(row: Row, columns: dict[str, str], origin: Origin) -> _Pair:
    return _Pair(*(_conversation(row, columns[answer], columns.get("prompt"), origin) for answer in COLUMNS[3:]))


def _conversation(row: Row, column: str, prompt: str | None, origin: Origin) -> Messages:
    """The whole conversation that ends with the answer in a column."""
    value = row.cells.get(column)
    if isinstance(value, list) and len(value) != 1:
        return checked_messages(value, column, row, origin)
    if isinstance(value, list):  # one message: the answer alone
        context = _context(row, prompt, column, origin)
        return checked_messages([*context, *value], column, row, origin)
    text = required_text(row, column, origin, may_be_empty=True)
    if prompt is None:
        return _transcript(text, row, column, origin)
    return (*_context(row, prompt, column, origin), {"role": "assistant", "content": text})


def _context(row: Row, prompt: str | None, answer: str, origin: Origin) -> Messages:
    if prompt is None:
        raise origin.error(
            f"{answer!r} is an answer without its prompt; name the column that holds it with "
            f"{origin.setting('columns.prompt', 'NAME')}",
            row.place,
        )
    value: Any = row.cells.get(prompt)
    if isinstance(value, list):
        return checked_messages(value, prompt, row, origin, last="user")
    return ({"role": "user", "content": required_text(row, prompt, origin)},)


def _transcript(text: str, row: Row, column: str, origin: Origin) -> Messages:
    """The messages of a transcript; empty where the two do not take turns, the Assistant last (HH-RLHF has some)."""
    before, *parts = TURN.split(text.strip())
    if before or not parts or parts[0] != "Human":
        raise origin.error(
            f'{column!r} must be a transcript that begins with "Human:", as there is no column of prompts; name one '
            f"with {origin.setting('columns.prompt', 'NAME')}",
            row.place,
        )
    turns = tuple(
        {"role": ROLES[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )
    in_turn = all(turn["role"] == ("user", "assistant")[number % 2] for number, turn in enumerate(turns))
    told = all(turn["content"] for turn in turns[:-1])
    return turns if in_turn and told and len(turns) % 2 == 0 else ()


def _refuse_equal_answers(pairs: list[tuple[Row, _Pair]], origin: Origin) -> None:
    equal = [row for row, pair in pairs if _answer(pair.chosen) == _answer(pair.rejected)]
    if equal:
        shown = ", ".join(row.place for row in equal[:SHOWN]) + (", …" if len(equal) > SHOWN else "")
        raise origin.error(
            f"chosen and rejected are the same answer in {len(equal)} of {len(pairs)} rows; correct them or take them "
            "out",
            shown,
        )


def _answer(conversation: Messages) -> str:
    return conversation[-1]["content"].strip()


def _preference(row: Row, pair: _Pair, columns: dict[str, str], origin: Origin) -> Preference:
    category = optional_text(row, columns.get("category"), origin)
    answers = (pair.chosen[-1]["content"], pair.rejected[-1]["content"])
    return Preference(row_id(row, columns.get("id"), origin), pair.chosen[:-1], *answers, category)


def _content(preference: Preference) -> tuple[str, ...]:
    """What makes two pairs the same."""
    said = tuple(message["content"].strip() for message in preference.context)
    return (*said, preference.chosen.strip(), preference.rejected.strip())
