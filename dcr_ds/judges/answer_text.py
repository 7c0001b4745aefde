"""The text that judges read: an answer without reasoning, special tokens, padding and further turns.

All judges read it, so that what an inference engine leaves around an answer never changes a label.
"""

import re
from pathlib import Path

from dcr_ds import reasoning
from dcr_ds.files import hash_of

_UNQUOTED = r"(?<![`'\"\u2018\u201c])"
# Tokens that end a turn, start a turn or pad a batch; those around reasoning and answers are not among them.
_SPECIAL = (
    rf"(?:{_UNQUOTED}(?:<\|(?!(?i:{reasoning.TOKEN_NAMES}))[A-Za-z_/][\w/ -]{{0,40}}\|?>|"
    r"<\uff5c[^<>\uff5c]{1,40}\uff5c>|"
    r"<(?:(?:seed:)?(?:eos|bos|pad|unk)|EOT|end_of_turn|start_of_turn|turn\||end_of_utterance|eo[aphm]|sop|"
    r"(?:reserved|extra_id|SPECIAL)_\d+|unused(?!9[45]>)\d+)>|</s>|"
    r"\[\|[A-Za-z_]{1,40}\|\]|\[e~\[|\]~[a-z]*\]|"
    r"\[(?:PAD|EOS|BOS|UNK|SEP|CLS|INST|/INST|gMASK|UNUSED_TOKEN_\d+)\]|<</?SYS>>)|\x00)"
)
_ROLE = r"(?:assistant|ai|bot|### ?(?:response|assistant))"
_HAS_CHANNELS = re.compile(  # whose parts begin and end with special tokens
    r"<\|channel|<\|content\|>|<\|im_start\|>(?:think|answer)\b"
)
_PROMPT = re.compile(  # that an engine returned before the answer, with the markup of the chat template
    r"[\s\ufeff]*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>|\[gMASK\]|<sop>)\s*)*"
    r"(?:\[INST\]|<(?:[|\uff5c]\w+|start_of_turn)[|\uff5c]?>\s*(?:user|system|developer)\b|"
    r"<[|\uff5c](?:user|system|developer)[|\uff5c]>)"
    r".*?(?:\[/INST\]|<(?:[|\uff5c]\w+|start_of_turn)[|\uff5c]?>\s*(?:assistant|model)\b|"
    r"<[|\uff5c](?:assistant|chatbot)[|\uff5c]>)",
    re.IGNORECASE | re.DOTALL,
)
_START = re.compile(
    rf"(?:[\s\u200b\ufeff]|<s>|{_SPECIAL}|(?<=[>\]])(?:assistant|model)\b|{_ROLE} ?:|(?:assistant|model)\s*\n)+",
    re.IGNORECASE,
)
_END = re.compile(_SPECIAL)
_STRIKES = re.compile(r"<s>")  # HTML
_FURTHER_TURN = re.compile(  # from the last line break before it: thousands may precede
    r"\n[^\S\n]*(?:\*\*|#{1,4} ?)?(?:human|user|### ?(?:instruction|input|human|user))(?:\*\*)? ?:|"
    r"\n[^\S\n]*### ?(?:instruction|human|user|end)\b|"
    r"\n[ \t]*\n[ \t]*(?:q|question) ?: |"
    r"(?<=[.!?\"')\]])\s(?-i:USER): |"
    r"(?<=[.!?\"')\]\n])(?:assistant|user)\s*\n",
    re.IGNORECASE,
)
_MISSING = re.compile(  # how programs write "no value"
    r"[\[(<*'\"]*(?:none|nan|null|#?n/a|undefined)[\])>*'\"]*|<na>|"
    r"[\[(<*](?:empty|no (?:answer|response|output|reply))[\])>*]",
    re.IGNORECASE,
)

VERSION = hash_of([Path(module).read_text(encoding="utf-8") for module in (__file__, str(reasoning.__file__))])


def answer_text(completion: str) -> str:
    """The answer that a completion contains; '' if there is none, as with reasoning that never ends.

    It ends at the first end-of-turn or padding token, and at the first further turn.
    """
    if prompt := _PROMPT.match(completion):
        completion = completion[prompt.end() :]
    text = _first_turn(completion) if not _HAS_CHANNELS.search(completion) else completion
    answer = reasoning.after_reasoning(text)
    if answer is None:
        return ""
    answer = _first_turn(answer)
    if turn := _FURTHER_TURN.search(answer):
        answer = answer[: turn.start()].strip() or answer
    return "" if _MISSING.fullmatch(answer) else answer


def _first_turn(text: str) -> str:
    """The text up to the first special token after its beginning."""
    if start := _START.match(text):
        text = text[start.end() :]
    for end in _END.finditer(text):
        if not (end[0] == "</s>" and _STRIKES.search(text, 0, end.start())):
            return text[: end.start()].strip()
    return text.strip()
