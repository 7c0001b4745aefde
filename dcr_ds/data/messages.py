"""Checked messages of a conversation: `{"role", "content"}`, user and assistant alternating."""

from typing import Any

from dcr_ds.data.columns import checked_text
from dcr_ds.data.tables import Row, kind_of
from dcr_ds.errors import UserError

Messages = tuple[dict[str, str], ...]


def checked_messages(value: Any, column: str, row: Row, last_role: str = "assistant") -> Messages:
    """Checked messages: an optional system message, then user and assistant alternating, `last_role` at the end.

    The last message may be empty if it is the assistant's; callers leave such rows out.
    """
    if not isinstance(value, list):
        raise row.error(f"{column!r} must be a list of {{role, content}}, this is {kind_of(value)}")
    messages = [_message(item, number, row, column) for number, item in enumerate(value, 1)]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    has_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages[1:] if has_system else messages
    for number, message in enumerate(turns, 2 if has_system else 1):
        expected = "user" if (number - has_system) % 2 else "assistant"
        if message["role"] != expected:
            raise _message_error(f"has the role {message['role']!r}, expected {expected!r}", number, row, column)
        if not message["content"].strip() and (message is not turns[-1] or last_role == "user"):
            raise _message_error("is empty", number, row, column)
    if not turns or turns[-1]["role"] != last_role:
        last_message = "the assistant's answer" if last_role == "assistant" else "the user's message"
        raise row.error(f"{column!r} must end with {last_message}")
    return tuple(messages)


def _message(item: Any, number: int, row: Row, column: str) -> dict[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not isinstance(item.get("content"), str):
        raise _message_error('must have the form {"role": text, "content": text}', number, row, column)
    return {"role": item["role"], "content": checked_text(item["content"], column, row)}


def _message_error(problem: str, number: int, row: Row, column: str) -> UserError:
    return row.error(f"message {number} of {column!r} {problem}")
