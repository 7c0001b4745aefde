"""Reasoning blocks: what a reasoning model writes before its answer, in the formats of current models.

Tags (`<think>…</think>`, `[THINK]…[/THINK]`, `<seed:think>`, …), the channels of gpt-oss ("harmony"), and the headings
of models that write no tags. The answer is what follows the last closing tag.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_WORDS = (
    r"(?:(?:inner|internal|hidden|longcat)[_-])?"
    r"(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|monologue|deliberation|rationale|"
    r"cot|chain[_-]of[_-]thought)(?:[_-](?:process|content|steps|trace|block|fast|faster|slow))?"
)
_IN_BRACKETS = "think|thinking|reasoning"
_SPECIAL_OPEN = (
    rf"<\|(?:(?:begin|start)_(?:of_)?)?(?:{_WORDS})(?:_start|_begin)?\|>|"
    r"<\|inner_prefix\|>|\u25c1think\u25b7|<unused94>"
)
_SPECIAL_CLOSE = (
    rf"<\|(?:(?:/|end_(?:of_)?)(?:{_WORDS})|(?:{_WORDS})_end)\|>|"
    r"<\|inner_suffix\|>|\u25c1/think\u25b7|<unused95>|<channel\|>"
)
# Words that are also placeholders in an answer, as in "because of <reason>", and parts of an answer in XML.
_AMBIGUOUS = re.compile(r"<\s*/?\s*(?:reason|reflection|analysis|rationale|deliberation|thoughts?)\s*>", re.IGNORECASE)
_DETAILS = '<details type="reasoning"'
_UNQUOTED = r"(?<![`'\"\u2018\u201c])"  # an answer may quote a tag: `<think>`
_OPEN = re.compile(
    rf"{_UNQUOTED}(?:"
    rf"<\s*(?:\w+:)?(?:{_WORDS})(?:\s[^<>]{{0,200}})?>|\[(?:{_IN_BRACKETS})\]|{_DETAILS}[^<>]{{0,200}}>|"
    rf"{_SPECIAL_OPEN}|<\|im_start\|>think\b|"
    r"<\|?channel\|?>\s*(?:analysis|commentary|thought)\b"
    r")",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"{_UNQUOTED}(?:"
    rf"<\s*/\s*(?:\w+:)?(?:{_WORDS})\s*>|\[/(?:{_IN_BRACKETS})\]|</details>|"
    rf"{_SPECIAL_CLOSE}|<\|im_start\|>answer\b|"
    r"<\|end\|>\s*<\|begin\|>assistant<\|content\|>|"
    r"<\|channel\|>\s*final\b[^<>]{0,40}(?:<\|constrain\|>[^<>]{0,40})?<\|message\|>"
    r")",
    re.IGNORECASE,
)
# Harmony after a decoder removed its special tokens; and models that announce the answer in words.
_UNTAGGED = (
    (re.compile(r"\s*(?:assistant)?analysis(?=[^\W\d_])"), re.compile(r"assistant\s?final")),
    (re.compile(r"\s*(?:assistantfinal|final(?=[A-Z*#\"]))"), re.compile(r"\A\s*(?:assistant)?final")),
    (re.compile(r"\s*Thinking\.\.\.\s*\n"), re.compile(r"\.\.\.done thinking\.")),  # ollama run
    (re.compile(r"\s*Here is my thought process:"), re.compile(r"Here is my response:")),
    (re.compile(r"\s*Here are my reasoning steps:"), re.compile(r"\[BEGIN FINAL RESPONSE\]")),
)
_WRAPPER = re.compile(
    r"\s*(?:<(answer|response|output|conclusion|final|final_answer)>|<\|(?:begin_of_solution|start_response|begin_of_box)\|>)",
    re.IGNORECASE,
)
_WRAPPER_END = re.compile(
    r"(?:</(?:answer|response|output|conclusion|final|final_answer)>|<\|(?:end_of_solution|end_response|end_of_box)\|>|"
    r"\[END FINAL RESPONSE\])\s*$",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rf"&lt;(/?(?:{_WORDS}))&gt;", re.IGNORECASE)  # by a program that wrote HTML
# Names of special tokens around reasoning and answers, after "<|".
TOKEN_NAMES = rf"/?(?:(?:begin|start|end)_(?:of_)?)?(?:{_WORDS}|solution|response|box)|inner_(?:prefix|suffix)"
_OPEN_AT_THE_END = re.compile(rf"({_OPEN.pattern})\s*$", re.IGNORECASE)
_BLOCK_AT_THE_END = re.compile(rf"(?P<open>{_OPEN.pattern})\s*(?P<close>{_CLOSE.pattern})?\s*$", re.IGNORECASE)
_EMPTY_BLOCK = re.compile(rf"\s*(?:{_OPEN.pattern}\s*)?{_CLOSE.pattern}\s*", re.IGNORECASE)


def after_reasoning(completion: str) -> str | None:
    """The answer without the reasoning before it; None if a block of reasoning is still open.

    A completion may begin inside a block, if the chat template has opened it: it then has only the closing tag.
    """
    answer = _after_untagged(_ESCAPED.sub(r"<\1>", completion))
    if answer is None:
        return None
    start = max((closing.end() for closing in _closings(answer)), default=0)
    if any(not _is_placeholder(opening, answer) for opening in _OPEN.finditer(answer, start)):
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


def empty_block(answer: str) -> str:
    """The empty block of reasoning, or the end of one, that an answer begins with; otherwise ''."""
    match = _EMPTY_BLOCK.match(answer)
    return match[0] if match else ""


def is_reasoning_mark(token: str) -> bool:
    """Whether a token of a vocabulary opens or closes reasoning, or names a channel."""
    return bool(_OPEN.fullmatch(token) or _CLOSE.fullmatch(token)) or token in ("<|channel|>", "<|channel>")


def _after_untagged(completion: str) -> str | None:
    for opening, closing in _UNTAGGED:
        if opening.match(completion):
            parts = closing.split(completion)
            return parts[-1] if len(parts) > 1 else None
    return completion


def _closings(text: str) -> Iterator[re.Match]:
    """The tags that end reasoning: not </details> of another block, nor </reason> in an answer with <reason>."""
    first_details = text.find(_DETAILS)
    beginning = _OPEN.match(text.lstrip())
    first_ambiguous = {tag[0]: tag.start() for tag in reversed(list(_AMBIGUOUS.finditer(text)))}
    for closing in _CLOSE.finditer(text):
        if closing[0] == "</details>":
            is_part = not 0 <= first_details < closing.start()
        else:
            tag = closing[0].replace("/", "")
            is_part = first_ambiguous.get(tag, len(text)) < closing.start() and not (beginning and beginning[0] == tag)
        if not is_part:
            yield closing


def _is_placeholder(opening: re.Match, text: str) -> bool:
    """Whether an opening tag stands in a sentence, and is no tag of reasoning alone."""
    before = text[: opening.start()].rstrip(" \t")[-1:]
    return bool(_AMBIGUOUS.fullmatch(opening[0])) and before not in ("", "\n")


def _unwrapped(answer: str) -> str:
    """The answer without the tags that some models write around it after their reasoning."""
    if opening := _WRAPPER.match(answer):
        answer = answer[opening.end() :]
    return _WRAPPER_END.sub("", answer)
