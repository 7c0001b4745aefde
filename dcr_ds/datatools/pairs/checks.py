"""What a candidate twin must be: like its harmful prompt in words and length, and unlike every other prompt."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from dcr_ds.data.leakage import normalise
from dcr_ds.judges.rules.languages import ENGLISH
from dcr_ds.judges.rules.prompt_form import FILLERS, STEM

COPY, DUPLICATE, NO_SHARED_WORD, LENGTH = "copy", "duplicate", "no shared word", "length"
MUST_HOLD = (COPY, DUPLICATE)  # whatever a person says: two equal prompts are no pair
FEWEST_LETTERS = 4  # of the shorter of two forms of one word
MAX_RATIO = 2.0  # of the lengths in words of a pair
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def shared_words(first: str, second: str) -> list[str]:
    """The words of the second text that the first one has, too, or another form of them; no function words."""
    known = set(_content_words(first))
    words = dict.fromkeys(_content_words(second))
    return [word for word in words if any(_is_form_of(word, other) for other in known)]


def failed_checks(harmful: Mapping[str, str], candidates: Mapping[str, str]) -> dict[str, list[str]]:
    """The checks that each candidate fails, by id.

    Args:
        harmful: all harmful prompts by id.
        candidates: text by the id of the harmful prompt.
    """
    others = Counter(map(normalise, harmful.values())) + Counter(map(normalise, candidates.values()))
    return {key: _failed(harmful[key], text, others) for key, text in candidates.items()}


def _failed(harmful: str, candidate: str, others: Counter[str]) -> list[str]:
    failed = []
    if normalise(candidate) == normalise(harmful):
        failed.append(COPY)
    elif others[normalise(candidate)] > 1:  # a harmful prompt of another pair, or another candidate
        failed.append(DUPLICATE)
    if not shared_words(harmful, candidate):
        failed.append(NO_SHARED_WORD)
    first, second = (max(1, len(WORD.findall(text))) for text in (harmful, candidate))
    if max(first, second) > MAX_RATIO * min(first, second):
        failed.append(LENGTH)
    return failed


def _content_words(text: str) -> Sequence[str]:
    words = WORD.findall(text.lower())
    return [word for word in words if word not in FILLERS and word not in ENGLISH and len(word) > 1]


def _is_form_of(word: str, other: str) -> bool:
    """Whether two words are equal or begin alike: kill and killing, but not car and carpet."""
    length = min(len(word), len(other), STEM)
    return word == other or (length >= FEWEST_LETTERS and word[:length] == other[:length])
