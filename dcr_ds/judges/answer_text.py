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
    r"<(?:eos|bos|pad|unk|EOT|end_of_turn|start_of_turn|turn\||end_of_utterance)>|</s>|"
    r"\[\|[A-Za-z_]{1,40}\|\]|\[e~\[|\]~[a-z]*\]|"
    r"\[(?:PAD|EOS|BOS|UNK|SEP|CLS|INST|/INST)\]|<</?SYS>>)|\x00)"
)
_ROLE = r"(?:assistant|ai|bot|### ?(?:response|assistant))"
_HAS_CHANNELS = re.compile(r"<\|channel|<\|content\|>")  # whose parts begin and end with special tokens
_START = re.compile(
    rf"(?:[\s\u200b\ufeff]|<s>|{_SPECIAL}|(?<=[>\]])(?:assistant|model)\b|{_ROLE} ?:|(?:assistant|model)\s*\n)+",
    re.IGNORECASE,
)
_END = re.compile(_SPECIAL)
_STRIKES = re.compile(r"<s>")  # HTML
_FURTHER_TURN = re.compile(
    r"\n\s*(?:\*\*|#{1,4} ?)?(?:human|user|### ?(?:instruction|input|human|user))(?:\*\*)? ?:|"
    r"\n\s*### ?(?:instruction|human|user)\b|"
    r"(?<=[.!?\"')\]\n])(?:assistant|user)\s*\n",
    re.IGNORECASE,
)
MISSING = frozenset(
    ("None", "nan", "NaN", "null", "NULL", "<NA>", "N/A", "n/a", "undefined")
)  # how programs write "no value"

VERSION = hash_of([Path(module).read_text(encoding="utf-8") for module in (__file__, str(reasoning.__file__))])


def answer_text(completion: str) -> str:
    """The answer that a completion contains; '' if there is none, as with reasoning that never ends.

    It ends at the first end-of-turn or padding token, and at the first further turn.
    """
    text = _first_turn(completion) if not _HAS_CHANNELS.search(completion) else completion
    answer = reasoning.after_reasoning(text)
    if answer is None:
        return ""
    answer = _first_turn(answer)
    if turn := _FURTHER_TURN.search(answer):
        answer = answer[: turn.start()].strip() or answer
    return "" if answer in MISSING else answer


def _first_turn(text: str) -> str:
    """The text up to the first special token after its beginning."""
    if start := _START.match(text):
        text = text[start.end() :]
    for end in _END.finditer(text):
        if not (end[0] == "</s>" and _STRIKES.search(text, 0, end.start())):
            return text[: end.start()].strip()
    return text.strip()
