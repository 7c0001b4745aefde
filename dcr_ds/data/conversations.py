"""Conversations: `messages`, ShareGPT's `conversations`, or a prompt and an answer in columns of several names."""

from collections.abc import Callable

from dcr_ds.data.columns import header_hint, is_blank, list_names, optional_text, required_text, row_id
from dcr_ds.data.messages import Messages, checked_messages, context_of, refuse_tools, with_history, with_system
from dcr_ds.data.reader import Kind, Layout, read_data_set
from dcr_ds.data.records import Conversation, ConversationSet
from dcr_ds.data.rows import LeftOut
from dcr_ds.data.tables import Row
from dcr_ds.recipe import DataSource

# the columns that each form requires; Alpaca's `input` is optional
FORMS = (
    ("messages",),
    ("conversations",),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
CONTEXT = ("system", "history", "tools")  # optional; they belong to any form
COLUMNS = (
    *("id", "category", "messages", "conversations", "prompt", "response", "completion"),
    *("instruction", "input", "output", *CONTEXT),
)
NO_INPUT = ("", "<no input>", "<noinput>")


def read_conversations(source: DataSource, name: str, field: str | None = None) -> ConversationSet:
    """Read conversations; see `read_data_set`. Those with an empty answer (Alpaca has some) are left out."""
    return read_data_set(CONVERSATIONS, source, name, field)


def _parser(layout: Layout) -> Callable[[Row], Conversation | LeftOut]:
    form = form_of(layout)
    read = _whole(layout.required(form[0])) if len(form) == 1 else _exchange(layout, form)
    id_column, category, system, history, tools = (layout.column(name) for name in ("id", "category", *CONTEXT))

    def parse(row: Row) -> Conversation | LeftOut:
        refuse_tools(row, tools)
        messages = with_system(with_history(read(row), row, history), row, system)
        if is_blank(messages[-1]["content"]):
            return LeftOut("empty answer")
        return Conversation(row_id(row, id_column), messages, optional_text(row, category))

    return parse


def form_of(layout: Layout) -> tuple[str, ...]:
    """The form of the rows: one that the mapping names a column of, else the first whose columns all exist."""
    mapped = [form for form in FORMS if any(column in layout.source.columns for column in form)]
    for form in mapped or FORMS:
        if all(column in layout.columns for column in form):
            return form
    if not mapped and {"chosen", "rejected"} <= set(layout.table.columns):
        raise layout.table.origin.error(
            "rows of chosen and rejected answers are preferences: name them in data.preferences, and set align.method "
            "(dpo, kto, orpo or simpo)"
        )
    wanted = mapped[0] if mapped else ("prompt", "response")
    forms = "; ".join(" and ".join(form) for form in FORMS)
    origin = layout.table.origin
    settings = [origin.setting(f"columns.{name}", "NAME") for name in wanted if name not in layout.columns]
    raise origin.error(
        f"no conversations in the columns {list_names(layout.table.columns)}. Required: {forms}. "
        f"Map other names, for example with {' '.join(settings)}{header_hint(layout.table)}"
    )


def _whole(column: str) -> Callable[[Row], Messages]:
    """Reads a column of complete conversations."""
    return lambda row: checked_messages(row.cells.get(column), column, row)


def _exchange(layout: Layout, form: tuple[str, ...]) -> Callable[[Row], Messages]:
    """Reads a prompt and its answer, each text or messages."""
    read_prompt, answer = prompt_reader(layout, form[0]), layout.required(form[1])

    def read(row: Row) -> Messages:
        context, answers = read_prompt(row), row.cells.get(answer)
        if isinstance(answers, list):
            return checked_messages([*context, *answers], answer, row)
        return (*context, {"role": "assistant", "content": required_text(row, answer, may_be_empty=True)})

    return read


def prompt_reader(layout: Layout, name: str) -> Callable[[Row], Messages]:
    """Reads the prompt in our column `name`, text or messages; Alpaca's `instruction` with its input."""
    column = layout.required(name)
    extra = layout.column("input") if name == "instruction" else None

    def read(row: Row) -> Messages:
        context = context_of(row, column)
        if extra is None:
            return context
        return (*context[:-1], {**context[-1], "content": _with_input(context[-1]["content"], row, extra)})

    return read


def _with_input(instruction: str, row: Row, column: str) -> str:
    """Alpaca's instruction, followed by a blank line and its input if there is one."""
    if row.cells.get(column) is None:
        return instruction
    text = required_text(row, column, may_be_empty=True)
    return instruction if text.strip().lower() in NO_INPUT else f"{instruction}\n\n{text}"


def _content(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    """All messages; conversations that differ in the system prompt teach different things."""
    return tuple((message["role"], message["content"].strip()) for message in conversation.messages)


CONVERSATIONS = Kind("conversations", COLUMNS, _parser, _content)
