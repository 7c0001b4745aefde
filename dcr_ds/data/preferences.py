"""Preferences: two answers to one prompt, the better (`chosen`) and the worse (`rejected`).

Three forms, recognised by the columns:
- `prompt` (text, or messages that end with the user's) and both answers (text, or one assistant message);
- both complete conversations as messages; a `prompt` column is then ignored;
- both complete transcripts of Human and Assistant and no `prompt`, as in Anthropic's HH-RLHF (arXiv 2204.05862).
"""

import re
from collections.abc import Callable

from dcr_ds.data.columns import optional_text, required_text, row_id
from dcr_ds.data.messages import Messages, checked_messages
from dcr_ds.data.reader import Kind, Layout, LeftOut, read_data_set
from dcr_ds.data.records import Preference, PreferenceSet
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

COLUMNS = ("id", "category", "prompt", "chosen", "rejected")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SHOWN = 5  # rows listed in an error


def read_preferences(source: DataSource, name: str = "preferences", field: str | None = None) -> PreferenceSet:
    """Read pairs of answers; see `read_data_set`.

    Pairs with an empty answer, and pairs whose conversations differ before the last answer, are left out. If chosen and
    rejected are equal, an error is raised: such a pair teaches nothing and is a mistake in the data.
    """
    return read_data_set(PREFERENCES, source, name, field)


def _parser(layout: Layout) -> Callable[[Row], Preference | LeftOut]:
    chosen_column, rejected_column = layout.required("chosen"), layout.required("rejected")
    prompt_column = layout.columns.get("prompt")

    def parse(row: Row) -> Preference | LeftOut:
        chosen = _conversation(row, chosen_column, prompt_column)
        rejected = _conversation(row, rejected_column, prompt_column)
        if chosen is None or rejected is None:
            return LeftOut("not a dialogue in which Human and Assistant take turns")
        if chosen[:-1] != rejected[:-1]:
            return LeftOut("the conversations differ before the last answer")
        answers = chosen[-1]["content"], rejected[-1]["content"]
        if not all(answer.strip() for answer in answers):
            return LeftOut("empty answer")
        category = optional_text(row, layout.columns.get("category"))
        return Preference(row_id(row, layout.columns.get("id")), chosen[:-1], *answers, category)

    return parse


def _conversation(row: Row, column: str, prompt_column: str | None) -> Messages | None:
    """The complete conversation that ends with the answer in a column; None for an irregular transcript."""
    value = row.cells.get(column)
    if isinstance(value, list) and len(value) != 1:
        return checked_messages(value, column, row)
    if isinstance(value, list):  # a single message: the answer
        return checked_messages([*_context(row, prompt_column, column), *value], column, row)
    text = required_text(row, column, may_be_empty=True)
    if prompt_column is None:
        return _transcript(text, row, column)
    return (*_context(row, prompt_column, column), {"role": "assistant", "content": text})


def _context(row: Row, prompt_column: str | None, answer_column: str) -> Messages:
    if prompt_column is None:
        raise row.error(
            f"{answer_column!r} is an answer without a prompt; map the column of prompts with "
            f"{row.origin.setting('columns.prompt', 'NAME')}"
        )
    value = row.cells.get(prompt_column)
    if isinstance(value, list):
        return checked_messages(value, prompt_column, row, last_role="user")
    return ({"role": "user", "content": required_text(row, prompt_column)},)


def _transcript(text: str, row: Row, column: str) -> Messages | None:
    """The messages of a transcript; None if the speakers do not alternate, the Assistant last (HH-RLHF has some)."""
    before, *parts = TURN.split(text.strip())
    if before or not parts or parts[0] != "Human":
        raise row.error(
            f'{column!r} must be a transcript that begins with "Human:", as there is no column of prompts; map one '
            f"with {row.origin.setting('columns.prompt', 'NAME')}"
        )
    turns = tuple(
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )
    alternates = all(turn["role"] == ("user", "assistant")[number % 2] for number, turn in enumerate(turns))
    has_content = all(turn["content"] for turn in turns[:-1])
    return turns if alternates and has_content and len(turns) % 2 == 0 else None


def _refuse_equal_answers(records: list[tuple[Row, Preference]]) -> None:
    equal = [row for row, pair in records if pair.chosen.strip() == pair.rejected.strip()]
    if equal:
        places = ", ".join(row.place for row in equal[:SHOWN]) + (", …" if len(equal) > SHOWN else "")
        raise equal[0].origin.error(
            f"chosen and rejected are the same answer in {len(equal)} of {len(records)} rows; correct or remove them",
            places,
        )


def _content(preference: Preference) -> tuple[str, ...]:
    context = tuple(message["content"].strip() for message in preference.context)
    return (*context, preference.chosen.strip(), preference.rejected.strip())


PREFERENCES = Kind("pairs", COLUMNS, _parser, _content, check=_refuse_equal_answers)
