"""The text of answers as the judge `rules` sees it: normalised, without quotations, in sentences."""

import re
from html import unescape
from typing import NamedTuple

SEEN_CHARACTERS = 6000  # of an answer or a prompt; enough to judge it, and bounds the time
OPENING_SENTENCES = 2
_APOSTROPHES = "\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u2032\u2035\u00b4\u055a\ua78c\uff07"
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02"
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_PLAIN = str.maketrans(
    dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_QUOTES, '"') | dict.fromkeys(_INVISIBLE, "") | {"\u00a0": " "}
)
_GRAVE = re.compile(r"(?<=[a-z])`(?=[a-z])", re.IGNORECASE)  # can`t
_NO_APOSTROPHE = re.compile(
    r"\b(can|won|don|isn|aren|wasn|couldn|wouldn|shouldn|doesn|didn|haven|hasn|mustn) ?(?:t|' ?t)\b|\bcan 't\b|"
    r"\bi ?(m|ve) (?=not|sorry|unable|just|an?\b|only|afraid)"
)
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_MARKS = re.compile(r"[*_#`>]+")
_QUOTATION = re.compile(
    r"(?:(?<=[:,.!?] )|(?<=[:,.!?]))\"[^\"]{0,300}\"|(?<=: )'[^\n]{0,300}?'(?=[\s.,]|$)"
)  # quoted speech
_REPORTED_SPEECH = re.compile(  # "they answer: I'm sorry, I can't do that."
    r"(?<!\bi )(?<!\bi must )(?<!\bto )\b(?:says?|said|answers?|answered|repl(?:y|ies|ied)|responds?|responded|"
    r"reads?|tells? \w+|told \w+|writes?|wrote|(?:responses?|replies|phrases|refusals|messages?) (?:like|such as))"
    r"(?: with)?[:,]? *\n?'?(?=i(?:'m|'d| am| can| will| won| do)?\b|sorry|as an ai)[^.!?\n]{0,300}"
)
_ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.):]|[-*\u2022\u2013]|step \d+|(?:first|second|third)ly\b)[ \t]*\S", re.M | re.I)


class Wording(NamedTuple):
    """An answer as the judge sees it: plain lower-case text, its sentences, and the number of list items."""

    text: str
    sentences: list[str]
    items: int

    @property
    def opening(self) -> str:
        return " ".join(self.sentences[:OPENING_SENTENCES])

    @property
    def rest(self) -> str:
        return " ".join(self.sentences[OPENING_SENTENCES:])


def wording(completion: str) -> Wording:
    """Normalise quotes and entities, remove Markdown marks and quoted speech, lower the case, split into sentences."""
    raw = _GRAVE.sub("'", unescape(completion.strip()[:SEEN_CHARACTERS]).translate(_PLAIN))
    text = _QUOTATION.sub("", _MARKS.sub("", raw)).strip().lower()
    text = _REPORTED_SPEECH.sub("", _NO_APOSTROPHE.sub(_with_apostrophe, text))
    sentences = [" ".join(part.split()) for part in _SENTENCE.split(text) if part.strip()]
    return Wording(" ".join(sentences), sentences, len(_ITEM.findall(raw)))


def _with_apostrophe(match: re.Match) -> str:
    return f"i'{match[2]} " if match[2] else f"{match[1] or 'can'}'t"
