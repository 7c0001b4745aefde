"""Conversations as text, as judges and reports show them."""

from collections.abc import Sequence


def transcript(context: Sequence[dict[str, str]], prompt: str) -> str:
    """A prompt after its earlier messages, each with its role; the prompt itself if there are none."""
    if not context:
        return prompt
    messages = [*context, {"role": "user", "content": prompt}]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
