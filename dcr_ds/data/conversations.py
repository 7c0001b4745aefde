"""Conversations: `messages`, or `prompt` and `response`, or Alpaca's `instruction`, `input` and `output`."""

from dcr_ds.data.columns import list_names, optional_text, required_text, resolve_columns
from dcr_ds.data.messages import checked_messages
from dcr_ds.data.records import Conversation, ConversationSet, digest
from dcr_ds.data.selection import draw_rows, drop_repeats, filter_rows, refuse_doubled_ids, row_id
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Origin, Row, Table
from dcr_ds.recipe import DataSource

FORMS = (
    ("messages",),
    ("prompt", "response"),
    ("instruction", "output"),
)  # needed columns; `input` may be there
COLUMNS = ("id", "category", "messages", "prompt", "response", "instruction", "input", "output")
NO_INPUT = ("", "<no input>", "<noinput>")


def read_conversations(source: DataSource, name: str, field: str | None = None) -> ConversationSet:
    """Read conversations, check every row, and keep the rows that the source asks for.

    Conversations without an answer (Alpaca has some) and those that repeat an earlier one are left out and
    counted, before the draw.

    Args:
        name: name of the set; general and refusals have a built-in one.
        field: dotted name of the field in the recipe, for messages (default: data.<name>).

    Raises:
        UserError: naming the path, the line or row, the column, what is wrong and the way out.
    """
    table = filter_rows(read_table(source, name, field or f"data.{name}"), source.where)
    origin = table.origin
    if source.first_human_turn:
        raise origin.error("first_human_turn is for prompt sets; conversations need their answers")
    columns = resolve_columns(table, source.columns, COLUMNS)
    form = _form(table, columns, source.columns)
    records = [(row, _conversation(row, columns, form, origin)) for row in table.rows]
    records, empty_notes = _drop_empty_answers(records, origin)
    records, notes = drop_repeats(records, key=_exchange, what="conversations")
    refuse_doubled_ids(records, origin)
    rows = draw_rows([conversation for _, conversation in records], source, origin)
    return ConversationSet(name, origin.path, rows, digest(rows), empty_notes + notes)


def _form(table: Table, columns: dict[str, str], mapping: dict[str, str]) -> tuple[str, ...]:
    """The form of the rows: one that the mapping names a column of, else the first that is there whole."""
    mapped = [form for form in FORMS if any(column in mapping for column in form)]
    for form in mapped or FORMS:
        if all(column in columns for column in form):
            return form
    missing = next(column for column in (mapped or FORMS)[0] if column not in columns)
    forms = "; ".join(" and ".join(form) for form in FORMS)
    raise table.origin.error(
        f"no conversations in these columns: {list_names(table.columns)}. One of these is needed: {forms}. "
        f"Name a column with {table.origin.setting(f'columns.{missing}', 'NAME')}"
    )


def _drop_empty_answers(
    records: list[tuple[Row, Conversation]], origin: Origin
) -> tuple[list[tuple[Row, Conversation]], list[str]]:
    answered = [(row, conversation) for row, conversation in records if conversation.response.strip()]
    if not answered:
        raise origin.error("every answer is empty; there is nothing to train on or to measure")
    count = len(records) - len(answered)
    return answered, [f"{count} conversations with an empty answer left out"] if count else []


def _exchange(conversation: Conversation) -> tuple[str, ...]:
    """What makes two conversations the same: what was said before the answer, and the answer."""
    return tuple(message["content"].strip() for message in conversation.messages if message["role"] != "system")


def _conversation(row: Row, columns: dict[str, str], form: tuple[str, ...], origin: Origin) -> Conversation:
    if form == ("messages",):
        messages = checked_messages(row.cells.get(columns["messages"]), columns["messages"], row, origin)
    else:
        question = required_text(row, columns[form[0]], origin)
        answer = required_text(row, columns[form[1]], origin, may_be_empty=True)
        if form[0] == "instruction":
            question = _with_input(question, row, columns.get("input"), origin)
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    category = optional_text(row, columns.get("category"), origin)
    return Conversation(row_id(row, columns.get("id"), origin), messages, category)


def _with_input(instruction: str, row: Row, column: str | None, origin: Origin) -> str:
    """Alpaca's instruction, followed by a blank line and its input where there is one."""
    if column is None or row.cells.get(column) is None:
        return instruction
    extra = required_text(row, column, origin, may_be_empty=True)
    return instruction if extra.strip().lower() in NO_INPUT else f"{instruction}\n\n{extra}"
