"""Checked messages of a conversation: `{"role", "content"}`, user and assistant alternating.

ShareGPT's `{"from", "value"}`, its names of roles, and contents as a list of text parts are converted.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from dcr_ds.data.columns import checked_text, is_blank, optional_text, required_text
from dcr_ds.data.tables import Row, RowError, kind_of

Messages = tuple[dict[str, str], ...]
ROLE = {"role", "from"}  # keys of a message
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "function_response", "observation")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
READ = ROLE | {"content", "value"}  # keys of a message that are used
# a list as Python prints it, which pandas and the csv module write for a list in a cell
PRINTED = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'")
ONLY_TEXT = "only text is trained on; remove the row"


def checked_messages(value: Any, column: str, row: Row, last_role: str = "assistant") -> Messages:
    """Checked messages: an optional system message, then user and assistant alternating, `last_role` at the end.

    The last message may be empty if it is the assistant's; callers leave such rows out. An answer of weight 0 (OpenAI's
    format for fine-tuning) is an error: only the last answer is trained on.
    """
    value = as_list(value)
    if not isinstance(value, list):
        _refuse_printed(value, column, row)
        raise row.error(f"{column!r} must be a list of {{role, content}}, this is {kind_of(value)}")
    messages = [_message(item, number, row, column) for number, item in enumerate(value, 1)]
    if messages and messages[0]["role"] == "system" and is_blank(messages[0]["content"]):
        messages = messages[1:]
    has_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages[1:] if has_system else messages
    for number, message in enumerate(turns, 2 if has_system else 1):
        expected = "user" if (number - has_system) % 2 else "assistant"
        if message["role"] != expected:
            raise _message_error(f"has the role {message['role']!r}, expected {expected!r}", number, row, column)
        if is_blank(message["content"]) and (message is not turns[-1] or last_role == "user"):
            raise _message_error("is empty", number, row, column)
    if not turns or turns[-1]["role"] != last_role:
        last_message = "the assistant's answer" if last_role == "assistant" else "the user's message"
        raise row.error(f"{column!r} must end with {last_message}")
    if last_role == "assistant" and value[-1].get("weight") == 0:
        problem = "has the weight 0, so the answer is not meant to be trained on; remove the row, or the weight"
        raise _message_error(problem, len(value), row, column)
    return tuple(messages)


def unused_keys(cells: Iterable[Any]) -> list[str]:
    """Keys of messages in cells that have a value and are not used, such as `reasoning_content`; in order."""
    values = map(as_list, cells)
    lists = (value if isinstance(value, list) else [value] for value in values)
    messages = (item for items in lists for item in items if isinstance(item, dict))
    keys = (key for message in messages for key, value in message.items() if value not in (None, "", [], {}))
    return list(dict.fromkeys(key for key in keys if key not in READ))


def as_list(value: Any) -> Any:
    """A list that a text file holds as JSON; any other value as it is."""
    return from_json(value) if isinstance(value, str) and value.lstrip().startswith("[") else value


def from_json(text: str) -> Any:
    """The value that a cell of a text file holds as JSON; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def context_of(row: Row, column: str) -> Messages:
    """The prompt in a cell: text, or messages that end with the user's, also as the JSON of a text file."""
    value = row.cells.get(column)
    messages = as_list(value)
    is_list = isinstance(messages, list) and bool(messages) and all(isinstance(item, dict) for item in messages)
    if is_list and (isinstance(value, list) or all(ROLE & item.keys() for item in messages)):
        return checked_messages(messages, column, row, last_role="user")
    _refuse_printed(value, column, row)
    return ({"role": "user", "content": required_text(row, column)},)


def _refuse_printed(value: Any, column: str, row: Row) -> None:
    if isinstance(value, str) and PRINTED.match(value):
        raise row.error(f"{column!r} is a list as Python prints it; write it as JSON, with json.dumps")


def with_history(messages: Messages, row: Row, column: str | None) -> Messages:
    """The messages after the earlier turns in a column: pairs of texts, as LLaMA-Factory has them, or messages."""
    value = as_list(row.cells.get(column)) if column is not None else None
    if column is None or value is None or value in ([], ""):
        return messages
    if messages[0]["role"] == "system":
        raise row.error(f"{column!r} stands before messages that begin with a system prompt; remove the row")
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return (*checked_messages(value, column, row), *messages)
    is_pair = isinstance(value, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) and not is_blank(text) for text in turn)
        for turn in value
    )
    if not is_pair:
        raise row.error(f"{column!r} must be a list of pairs [prompt, answer] of texts, or of {{role, content}}")
    turns = [
        {"role": role, "content": checked_text(text, column, row)}
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return (*turns, *messages)


def with_system(messages: Messages, row: Row, column: str | None) -> Messages:
    """The messages after the system prompt in a column; an empty cell means none."""
    text = optional_text(row, column)
    if column is None or text is None:
        return messages
    if messages[0]["role"] != "system":
        return ({"role": "system", "content": required_text(row, column)}, *messages)
    if messages[0]["content"].strip() == text:
        return messages
    raise row.error(f"{column!r} and the first message are different system prompts; remove one of them")


def refuse_tools(row: Row, column: str | None) -> None:
    """Raise if a column describes tools: without them, the conversation would be another one."""
    value = row.cells.get(column) if column is not None else None
    if as_list(value) not in (None, "", []):
        raise row.error(f"{column!r} describes tools; {ONLY_TEXT}")


def _message(item: Any, number: int, row: Row, column: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise _wrong_form(number, row, column)
    role = item.get("role") or item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if not isinstance(role, str):
        raise _wrong_form(number, row, column)
    role = ROLES.get(role.lower(), role)
    if role.lower() in TOOL_ROLES:
        raise _message_error(f"has the role {role!r}, the use of a tool; {ONLY_TEXT}", number, row, column)
    if used := next((key for key in TOOL_KEYS if item.get(key)), None):
        raise _message_error(f"uses a tool ({used!r}); {ONLY_TEXT}", number, row, column)
    if isinstance(content, list):
        content = _joined(content, number, row, column)
    if not isinstance(content, str):
        raise _wrong_form(number, row, column)
    return {"role": role, "content": checked_text(content, column, row)}


def _joined(parts: list[Any], number: int, row: Row, column: str) -> str:
    """The text of a content that is a list of parts; other parts than text are an error."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if not isinstance(text, str) or not str(kind).endswith("text"):
            shown = kind if isinstance(kind, str) and not kind.endswith("text") else kind_of(part)
            raise _message_error(f"contains a part that is not text ({shown}); {ONLY_TEXT}", number, row, column)
        texts.append(text)
    return "".join(texts)


def _wrong_form(number: int, row: Row, column: str) -> RowError:
    return _message_error('must have the form {"role": text, "content": text}', number, row, column)


def _message_error(problem: str, number: int, row: Row, column: str) -> RowError:
    return row.error(f"message {number} of {column!r} {problem}")
