"""Conversations as text, as judges and reports show them."""

import re
from typing import Any

LAST_TURN = "\n\nUser: "
_FIRST_TURN = re.compile(r"(?:System|User|Assistant): ")


def transcript(context: Any, prompt: str) -> str:
    """A prompt after its earlier messages, each with its role; the prompt itself if there are none.

    Args:
        context: a list of {role, content}; anything else, such as a text column of that name, is ignored.
    """
    if not (isinstance(context, list | tuple) and context and all(map(_is_message, context))):
        return prompt
    messages = [*context, {"role": "user", "content": prompt}]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def split_transcript(text: str) -> tuple[str, str]:
    """The earlier messages of a transcript, and its last one; of any other text nothing, and the text."""
    earlier, is_there, last = text.rpartition(LAST_TURN)
    return (earlier, last) if is_there and _FIRST_TURN.match(earlier) else ("", text)


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("role", "content"))
