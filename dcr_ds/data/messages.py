"""Messages of a conversation, checked: `{"role", "content"}`, in turn."""

from typing import Any

from dcr_ds.data.columns import checked_text
from dcr_ds.data.tables import Origin, Row, kind_of
from dcr_ds.errors import UserError

Messages = tuple[dict[str, str], ...]


def checked_messages(value: Any, column: str, row: Row, origin: Origin, last: str = "assistant") -> Messages:
    """Checked messages: a system message if any, then user and assistant in turn, the role `last` at the end.

    The last one may be empty if it is the assistant's: the caller leaves such rows out.
    """
    if not isinstance(value, list):
        raise origin.error(f"{column!r} must be a list of {{role, content}}, this is {kind_of(value)}", row.place)
    messages = [_message(item, number, row, column, origin) for number, item in enumerate(value, 1)]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    has_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages[1:] if has_system else messages
    for number, message in enumerate(turns, 2 if has_system else 1):
        wanted = "user" if (number - has_system) % 2 else "assistant"
        if message["role"] != wanted:
            raise _wrong(f"has the role {message['role']!r} where {wanted!r} is due", number, row, column, origin)
        if not message["content"].strip() and (message is not turns[-1] or last == "user"):
            raise _wrong("is empty", number, row, column, origin)
    if not turns or turns[-1]["role"] != last:
        wanted = "the assistant's answer" if last == "assistant" else "the user's message"
        raise origin.error(f"{column!r} must end with {wanted}", row.place)
    return tuple(messages)


def _message(item: Any, number: int, row: Row, column: str, origin: Origin) -> dict[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not isinstance(item.get("content"), str):
        raise _wrong('is not of the form {"role": text, "content": text}', number, row, column, origin)
    content = checked_text(item["content"], column, row, origin)
    return {"role": item["role"], "content": content}


def _wrong(what: str, number: int, row: Row, column: str, origin: Origin) -> UserError:
    return origin.error(f"message {number} of {column!r} {what}", row.place)
