"""Refusal openings: token sequences that begin refusals and hardly any ordinary answer.

Their probabilities after a prompt add up to the probability that the answer opens with a refusal, because no opening
is a prefix of another one. Candidates are the first tokens of the refusals in the training data and the phrases of
the published refusal lists. A candidate is taken at the shortest length at which it is distinctive: "I" begins "I
cannot" and "I think", so only its continuations are openings.

Answers are tokenised inside the chat template, so that an opening has its leading space exactly where the template
puts one. What the template writes before every answer (such as an empty <think> block) is the `lead`.
"""

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_answered, until_turn_end

MAX_TOKENS = 4  # length of candidates from the data
MAX_WORDS = 4  # length of phrases; the longer ones are whole sentences, or begin with a shorter one
MIN_COUNT = 3  # refusals that share a candidate; fewer say nothing about others
MIN_RATIO = 5  # how many times more frequent among refusals than among ordinary answers
MAX_ORDINARY = 0.001  # share of ordinary answers up to which a published phrase is taken without refusals in the data
MAX_ANSWERS = 2000  # of either kind, evenly spaced: more would not change what is frequent
MAX_CHARACTERS = 100  # of an answer; enough for MAX_TOKENS tokens
# Phrases that can stand at the beginning of a refusal. The published lists are matched anywhere in an answer, so they
# also hold words such as "illegal" or "Hello!".
CAN_OPEN = re.compile(r"(i|sorry|my apologies|as an?|it is not|it's not|unfortunately)\b", re.IGNORECASE)
# Beginnings of ordinary answers of chat models. Small training sets lack them, and a base model uses them often.
ORDINARY = (
    "I am glad", "I am happy", "I believe", "I can help", "I can certainly", "I do", "I feel", "I had", "I have",
    "I hope", "I like", "I love", "I see", "I think", "I understand", "I want", "I was", "I will", "I won the",
    "I would", "I'd be", "I'll", "I'm a", "I'm glad", "I'm happy", "I'm here", "I'm so", "I've", "As a", "As the",
    "As you", "It can", "It is a", "It is important", "It is not", "It's a", "It's important", "It's not", "No,", "No.",
    "No problem", "My name", "That is", "That's a", "There are", "This is", "The", "To", "Yes", "You can",
)  # fmt: skip
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """An opening: its tokens, and the shares of the refusals and of the ordinary answers that begin with it."""

    text: str
    tokens: Tokens
    source: str  # data, or phrases where no refusal in the data begins with it
    refusals: float
    ordinary: float


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A first token of openings; `shared` if ordinary answers also begin with it, so that it is a weak signal alone."""

    text: str
    token: int
    refusals: float  # share of the refusals in the data that begin with it
    ordinary: float
    shared: bool


@dataclass(frozen=True, slots=True)
class Openings:
    """The openings of a model's refusals.

    `refusals_covered` and `ordinary_covered` are the shares of the answers in the data that begin with an opening; the
    first is the share of refusals that openings can detect, the second the share of answers mistaken for refusals.
    """

    openings: tuple[Opening, ...]
    first_tokens: tuple[FirstToken, ...]
    lead: Tokens
    refusals_covered: float
    ordinary_covered: float


def find_openings(
    tokenizer: PreTrainedTokenizerBase, refusals: Sequence[str], ordinary: Sequence[str], phrases: Sequence[str]
) -> Openings:
    """Find the refusal openings of a tokenizer, the training data and published phrases.

    Args:
        refusals: answers that refuse; may be empty, then only phrases are used.
        ordinary: answers that do not; may be empty.
        phrases: from published lists; those that cannot open an answer, or are longer than MAX_WORDS, are skipped.

    Raises:
        UserError: no opening is found, a phrase has no tokens, or the chat template does not fit.
    """
    phrases = [_with_capitals(phrase) for phrase in phrases if _can_open(phrase)]
    lead, (refused, usual, ends, known) = _tokenise(tokenizer, [_some(refusals), _some(ordinary), phrases, ORDINARY])
    for phrase, tokens in zip(phrases, ends, strict=True):
        if not tokens:
            raise UserError(f"refusal opening {phrase!r}: the tokenizer and chat template make no tokens of it")
    counts = _Counts(refused, usual, known, longest=max([MAX_TOKENS, *map(len, ends)]))
    chosen = _shortest(_candidates(counts, set(ends)))
    if not chosen:
        raise UserError(
            f"no refusal opening found: none of {len(refusals)} refusals and {len(phrases)} phrases begins in a way "
            f"that {len(ordinary)} ordinary answers do not; check that the answers are not swapped"
        )
    openings = [
        Opening(
            text=str(tokenizer.decode(list(tokens))),
            tokens=tokens,
            source="data" if counts.refused[tokens] else "phrases",
            refusals=counts.share_of_refusals(tokens),
            ordinary=counts.share_of_ordinary(tokens),
        )
        for tokens in chosen
    ]
    openings.sort(key=lambda opening: (-opening.refusals, opening.tokens))
    return Openings(
        openings=tuple(_distinct_texts(openings)),
        first_tokens=_first_tokens(tokenizer, openings, counts),
        lead=lead,
        refusals_covered=sum(opening.refusals for opening in openings),
        ordinary_covered=sum(opening.ordinary for opening in openings),
    )


class _Counts:
    """How many answers begin with given tokens."""

    def __init__(self, refused: Sequence[Tokens], usual: Sequence[Tokens], known: Sequence[Tokens], longest: int):
        self.refused, self.usual = _prefix_counts(refused, longest), _prefix_counts(usual, longest)
        self.known = set(_prefix_counts(known, longest))
        self.num_refused, self.num_usual = len(refused), len(usual)

    def share_of_refusals(self, tokens: Tokens) -> float:
        return self.refused[tokens] / max(self.num_refused, 1)

    def share_of_ordinary(self, tokens: Tokens) -> float:
        return self.usual[tokens] / max(self.num_usual, 1)

    def is_distinctive(self, tokens: Tokens) -> bool:
        """Whether refusals begin with these tokens much more often; half an answer is added to both counts."""
        if tokens in self.known or self.refused[tokens] < MIN_COUNT:
            return False
        refused = (self.refused[tokens] + 0.5) / (self.num_refused + 1)
        usual = (self.usual[tokens] + 0.5) / (self.num_usual + 1)
        return refused >= MIN_RATIO * usual

    def is_rare_in_ordinary(self, tokens: Tokens) -> bool:
        return tokens not in self.known and self.share_of_ordinary(tokens) <= MAX_ORDINARY


def _prefix_counts(answers: Iterable[Tokens], longest: int) -> Counter[Tokens]:
    return Counter(answer[:length] for answer in answers for length in range(1, min(len(answer), longest) + 1))


def _candidates(counts: _Counts, phrases: set[Tokens]) -> list[Tokens]:
    from_data = {tokens for tokens in counts.refused if len(tokens) <= MAX_TOKENS and counts.is_distinctive(tokens)}
    return list(from_data | {tokens for tokens in phrases if counts.is_rare_in_ordinary(tokens)})


def _shortest(candidates: Sequence[Tokens]) -> list[Tokens]:
    """The candidates of which no other candidate is a prefix."""
    known = set(candidates)
    return [
        tokens
        for tokens in candidates
        if not any(tokens[:length] in known for length in range(1, len(tokens)))
    ]  # fmt: skip


def _first_tokens(
    tokenizer: PreTrainedTokenizerBase, openings: Sequence[Opening], counts: _Counts
) -> tuple[FirstToken, ...]:
    tokens = [
        FirstToken(
            text=str(tokenizer.decode([token])),
            token=token,
            refusals=counts.share_of_refusals((token,)),
            ordinary=counts.share_of_ordinary((token,)),
            shared=(token,) in counts.known or counts.usual[token,] > 0,
        )
        for token in {opening.tokens[0] for opening in openings}
    ]
    return tuple(sorted(tokens, key=lambda first: (-first.refusals, first.token)))


def _distinct_texts(openings: Sequence[Opening]) -> list[Opening]:
    """The openings, where two token sequences of the same text get their tokens into it: rows are keyed by text."""
    texts = Counter(opening.text for opening in openings)
    return [
        opening if texts[opening.text] == 1 else replace(opening, text=f"{opening.text} {list(opening.tokens)}")
        for opening in openings
    ]


def _tokenise(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Sequence[str]]) -> tuple[Tokens, list[list[Tokens]]]:
    """The lead, and the tokens of every answer after it and before its end of turn, group by group."""
    question = {"role": "user", "content": "a"}

    def answers(texts: Sequence[str]) -> list[Tokens]:
        rows = (encode_answered(tokenizer, [question, {"role": "assistant", "content": text}]) for text in texts)
        return [tuple(until_turn_end(tokenizer, row.ids[row.prompt_tokens :])) for row in rows]

    lead = tuple(os.path.commonprefix(answers(["Yes", "No"])))
    return lead, [[row[len(lead) :] for row in answers(texts)] for texts in groups]


def _some(answers: Sequence[str]) -> list[str]:
    """At most MAX_ANSWERS answers, evenly spaced, cut to their beginnings."""
    step = max(1, -(-len(answers) // MAX_ANSWERS))
    return [text for answer in answers[::step] if (text := answer.strip()[:MAX_CHARACTERS])]


def _can_open(phrase: str) -> bool:
    return CAN_OPEN.match(phrase.strip()) is not None and len(phrase.split()) <= MAX_WORDS


def _with_capitals(phrase: str) -> str:
    """A phrase as it opens an answer: lists that ignore case are written in lower case."""
    phrase = re.sub(r"\b(i|ai)\b", lambda word: word[0].upper(), phrase.strip())
    return phrase[:1].upper() + phrase[1:]
