"""Preferences: two answers to one prompt, the better (`chosen`) and the worse (`rejected`).

Three forms, recognised by the columns:
- a prompt (text, or messages that end with the user's) and both answers (text, or one assistant message); the prompt is
  in `prompt`, or as LLaMA-Factory has it in ShareGPT's `conversations` or Alpaca's `instruction` and `input`;
- both complete conversations as messages; a prompt is then ignored;
- both complete transcripts of Human and Assistant and no prompt, as in Anthropic's HH-RLHF (arXiv 2204.05862).
"""

import re
from collections.abc import Callable

from dcr_ds.data.columns import is_blank, optional_text, required_text, row_id
from dcr_ds.data.conversations import prompt_reader
from dcr_ds.data.messages import Messages, checked_messages, refuse_tools, with_history, with_system
from dcr_ds.data.reader import Kind, Layout, read_data_set
from dcr_ds.data.records import Preference, PreferenceSet
from dcr_ds.data.rows import LeftOut
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

PROMPTS = ("prompt", "conversations", "instruction")  # the first that exists has the prompts
COLUMNS = ("id", "category", *PROMPTS, "input", "chosen", "rejected", "system", "history", "tools")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
ReadPrompt = Callable[[Row], Messages]


def read_preferences(source: DataSource, name: str = "preferences", field: str | None = None) -> PreferenceSet:
    """Read pairs of answers; see `read_data_set`.

    Pairs with an empty answer, and pairs whose conversations differ before the last answer, are left out. A row whose
    chosen and rejected answers are equal is a bad row: it teaches nothing and is a mistake in the data.
    """
    read = read_data_set(PREFERENCES, source, name, field)
    contents = {_content(row) for row in read.rows}
    if exchanged := sum((*content[:-2], content[-1], content[-2]) in contents for content in contents):
        read.notes.append(f"{exchanged // 2} pairs also occur with chosen and rejected exchanged")
    return read


def _parser(layout: Layout) -> Callable[[Row], Preference | LeftOut]:
    if "chosen" not in layout.columns and "label" in layout.table.columns:
        raise layout.table.origin.error(
            "rows of single answers with a label are for KTO (align.method: kto); the other methods need pairs: "
            "the columns chosen and rejected"
        )
    chosen_column, rejected_column = layout.required("chosen"), layout.required("rejected")
    prompt_name = next((name for name in PROMPTS if name in layout.columns), None)
    read_prompt = prompt_reader(layout, prompt_name) if prompt_name else None
    names = ("id", "category", "system", "history", "tools")
    id_column, category, system, history, tools = (layout.column(name) for name in names)

    def parse(row: Row) -> Preference | LeftOut:
        refuse_tools(row, tools)
        conversations = [_conversation(row, column, read_prompt) for column in (chosen_column, rejected_column)]
        if any(conversation is None for conversation in conversations):
            return LeftOut("not a dialogue in which Human and Assistant take turns")
        chosen, rejected = (with_system(with_history(c, row, history), row, system) for c in conversations if c)
        if chosen[:-1] != rejected[:-1]:
            return LeftOut("the conversations differ before the last answer")
        answers = chosen[-1]["content"], rejected[-1]["content"]
        if any(map(is_blank, answers)):
            return LeftOut("empty answer")
        if answers[0].strip() == answers[1].strip():
            raise row.error("chosen and rejected are the same answer; correct or remove the row")
        return Preference(row_id(row, id_column), chosen[:-1], *answers, optional_text(row, category))

    return parse


def _conversation(row: Row, column: str, read_prompt: ReadPrompt | None) -> Messages | None:
    """The complete conversation that ends with the answer in a column; None for an irregular transcript."""
    value = row.cells.get(column)
    if isinstance(value, dict):  # ShareGPT's form: the answer as a message
        value = [value]
    if isinstance(value, list) and len(value) != 1:
        return checked_messages(value, column, row)
    if isinstance(value, list):  # a single message: the answer
        return checked_messages([*_context(row, read_prompt, column), *value], column, row)
    text = required_text(row, column, may_be_empty=True)
    if read_prompt is None:
        return _transcript(text, row, column)
    return (*read_prompt(row), {"role": "assistant", "content": text})


def _context(row: Row, read_prompt: ReadPrompt | None, answer_column: str) -> Messages:
    if read_prompt is None:
        raise row.error(
            f"{answer_column!r} is an answer without a prompt; map the column of prompts with "
            f"{row.origin.setting('columns.prompt', 'NAME')}"
        )
    return read_prompt(row)


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


def _content(preference: Preference) -> tuple[object, ...]:
    context = tuple((message["role"], message["content"].strip()) for message in preference.context)
    return (*context, preference.chosen.strip(), preference.rejected.strip())


PREFERENCES = Kind("pairs", COLUMNS, _parser, _content)
