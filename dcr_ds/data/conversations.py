"""Conversations: `messages`, or `prompt` and `response`, or Alpaca's `instruction`, `input` and `output`."""

from collections.abc import Callable

from dcr_ds.data.columns import list_names, optional_text, required_text, row_id
from dcr_ds.data.messages import Messages, checked_messages
from dcr_ds.data.reader import Kind, Layout, LeftOut, read_data_set
from dcr_ds.data.records import Conversation, ConversationSet
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

# the columns that each form requires; Alpaca's `input` is optional
FORMS = (
    ("messages",),
    ("prompt", "response"),
    ("instruction", "output"),
)
COLUMNS = ("id", "category", "messages", "prompt", "response", "instruction", "input", "output")
NO_INPUT = ("", "<no input>", "<noinput>")


def read_conversations(source: DataSource, name: str, field: str | None = None) -> ConversationSet:
    """Read conversations; see `read_data_set`. Those with an empty answer (Alpaca has some) are left out."""
    return read_data_set(CONVERSATIONS, source, name, field)


def _parser(layout: Layout) -> Callable[[Row], Conversation | LeftOut]:
    form, columns = _form(layout), layout.columns

    def parse(row: Row) -> Conversation | LeftOut:
        messages = _messages(row, columns, form)
        if not messages[-1]["content"].strip():
            return LeftOut("empty answer")
        return Conversation(row_id(row, columns.get("id")), messages, optional_text(row, columns.get("category")))

    return parse


def _form(layout: Layout) -> tuple[str, ...]:
    """The form of the rows: one that the mapping names a column of, else the first whose columns all exist."""
    mapped = [form for form in FORMS if any(column in layout.source.columns for column in form)]
    for form in mapped or FORMS:
        if all(column in layout.columns for column in form):
            return form
    missing = next(column for column in (mapped or FORMS)[0] if column not in layout.columns)
    forms = "; ".join(" and ".join(form) for form in FORMS)
    origin = layout.table.origin
    raise origin.error(
        f"no conversations in the columns {list_names(layout.table.columns)}. Required: {forms}. "
        f"Map a column with {origin.setting(f'columns.{missing}', 'NAME')}"
    )


def _messages(row: Row, columns: dict[str, str], form: tuple[str, ...]) -> Messages:
    if form == ("messages",):
        return checked_messages(row.cells.get(columns["messages"]), columns["messages"], row)
    question = required_text(row, columns[form[0]])
    answer = required_text(row, columns[form[1]], may_be_empty=True)
    if form[0] == "instruction":
        question = _with_input(question, row, columns.get("input"))
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def _with_input(instruction: str, row: Row, column: str | None) -> str:
    """Alpaca's instruction, followed by a blank line and its input if there is one."""
    if column is None or row.cells.get(column) is None:
        return instruction
    text = required_text(row, column, may_be_empty=True)
    return instruction if text.strip().lower() in NO_INPUT else f"{instruction}\n\n{text}"


def _content(conversation: Conversation) -> tuple[str, ...]:
    """All user and assistant messages; conversations that differ only in the system message are the same."""
    return tuple(message["content"].strip() for message in conversation.messages if message["role"] != "system")


CONVERSATIONS = Kind("conversations", COLUMNS, _parser, _content)
