"""Reasoning blocks: what a reasoning model writes before its answer, in the formats of current models.

Tags (`<think>…</think>`, `[THINK]…[/THINK]`, `<seed:think>`, …), the channels of gpt-oss ("harmony"), and the headings
of models that write no tags. The answer is what follows the last closing tag.
"""

import re
from typing import NamedTuple

_WORDS = (
    "think|thinking|thought|thoughts|reason|reasoning|reflection|analysis|scratchpad|"
    "inner_monologue|inner_thoughts|longcat_think|thinking_process"
)
_UNQUOTED = r"(?<![`'\"\u2018\u201c])"  # an answer may quote a tag: `<think>`
_OPEN = re.compile(
    rf"{_UNQUOTED}(?:"
    rf"<\s*(?:\w+:)?(?:{_WORDS})(?:\s[^<>]{{0,200}})?>|\[(?:{_WORDS})\]|<details type=\"reasoning\"[^<>]{{0,200}}>|"
    r"<\|(?:begin_of_thought|start_thinking|thinking|think|inner_prefix)\|>|\u25c1think\u25b7|<unused94>|"
    r"<\|?channel\|?>\s*(?:analysis|commentary|thought)\b"
    r")",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"{_UNQUOTED}(?:"
    rf"<\s*/\s*(?:\w+:)?(?:{_WORDS})\s*>|\[/(?:{_WORDS})\]|</details>|"
    r"<\|(?:end_of_thought|end_thinking|/thinking|/think|inner_suffix)\|>|\u25c1/think\u25b7|<unused95>|<channel\|>|"
    r"<\|channel\|>\s*final\b[^<>]{0,40}(?:<\|constrain\|>[^<>]{0,40})?<\|message\|>"
    r")",
    re.IGNORECASE,
)
# Harmony after a decoder removed its special tokens; and models that announce the answer in words.
_UNTAGGED = (
    (re.compile(r"\s*(?:assistant)?analysis(?=[A-Z])"), re.compile(r"assistant\s?final")),
    (re.compile(r"\s*Here is my thought process:"), re.compile(r"Here is my response:")),
    (re.compile(r"\s*Here are my reasoning steps:"), re.compile(r"\[BEGIN FINAL RESPONSE\]")),
)
_WRAPPER = re.compile(
    r"\s*(?:<(answer|response|output|final|final_answer)>|<\|(?:begin_of_solution|start_response|begin_of_box)\|>)",
    re.IGNORECASE,
)
_WRAPPER_END = re.compile(
    r"(?:</(?:answer|response|output|final|final_answer)>|<\|(?:end_of_solution|end_response|end_of_box)\|>|"
    r"\[END FINAL RESPONSE\])\s*$",
    re.IGNORECASE,
)
_OPEN_AT_THE_END = re.compile(rf"({_OPEN.pattern})\s*$", re.IGNORECASE)
_BLOCK_AT_THE_END = re.compile(rf"(?P<open>{_OPEN.pattern})\s*(?P<close>{_CLOSE.pattern})?\s*$", re.IGNORECASE)


def after_reasoning(completion: str) -> str | None:
    """The answer without the reasoning before it; None if a block of reasoning is still open.

    A completion may begin inside a block, if the chat template has opened it: it then has only the closing tag.
    """
    answer = _after_untagged(completion)
    if answer is None:
        return None
    closing = None
    for match in _CLOSE.finditer(answer):
        closing = match
    start = closing.end() if closing and _is_reasoning(closing, answer) else 0
    if _OPEN.search(answer, start):
        return None
    return _unwrapped(answer[start:])


def open_block(prompt: str) -> str:
    """The opening tag at the end of a rendered prompt, after which a model writes reasoning; otherwise ''."""
    match = _OPEN_AT_THE_END.search(prompt[-300:])
    return match[1] if match else ""


class Block(NamedTuple):
    """A block of reasoning at the end of a rendered prompt: its start, its opening tag, and whether it is closed."""

    start: int
    tag: str
    is_closed: bool


def block_at_the_end(prompt: str) -> Block | None:
    """The block of reasoning, open or empty, that a rendered prompt ends with."""
    offset = max(0, len(prompt) - 300)
    match = _BLOCK_AT_THE_END.search(prompt, offset)
    return Block(match.start(), match["open"], match["close"] is not None) if match else None


def closing_tag(tag: str) -> str | None:
    """The tag that closes <think>, [THINK] and the like; None for other styles."""
    match = re.fullmatch(r"(<|\[)\s*([\w:]+)(?:\s[^<>]*)?([>\]])", tag)
    return f"{match[1]}/{match[2]}{match[3]}" if match else None


def leading_block(answer: str) -> tuple[str, str | None] | None:
    """The reasoning that an answer begins with, and what follows it: None if it never ends.

    None if the answer does not begin with reasoning.
    """
    opening = _OPEN.match(answer, len(answer) - len(answer.lstrip()))
    if not opening:
        return None
    closing = _CLOSE.search(answer, opening.end())
    if not closing:
        return answer[opening.end() :], None
    return answer[opening.end() : closing.start()], answer[closing.end() :]


def is_reasoning_mark(token: str) -> bool:
    """Whether a token of a vocabulary opens or closes reasoning, or names a channel."""
    return bool(_OPEN.fullmatch(token) or _CLOSE.fullmatch(token)) or token in ("<|channel|>", "<|channel>")


def _after_untagged(completion: str) -> str | None:
    for opening, closing in _UNTAGGED:
        if opening.match(completion):
            parts = closing.split(completion)
            return parts[-1] if len(parts) > 1 else None
    return completion


def _is_reasoning(closing: re.Match, text: str) -> bool:
    """Whether a closing tag ends reasoning; </details> does only after its opening tag."""
    return closing[0] != "</details>" or '<details type="reasoning"' in text[: closing.start()]


def _unwrapped(answer: str) -> str:
    """The answer without the tags that some models write around it after their reasoning."""
    if opening := _WRAPPER.match(answer):
        answer = answer[opening.end() :]
    return _WRAPPER_END.sub("", answer)
