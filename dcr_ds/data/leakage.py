"""Evaluation prompts that occur in the training data, in the same or nearly the same words."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from dcr_ds.data.records import Prompt

KINDS = ("exact", "twin", "near")
NEAR = 0.65
SHOWN_CHARACTERS = 70  # of a prompt in a warning
Kind = Literal["exact", "twin", "near"]
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training prompt and the evaluation prompt that it leaks."""

    kind: Kind
    training_set: str
    training_id: str
    evaluation_set: str
    evaluation_id: str
    training_prompt: str
    evaluation_prompt: str
    similarity: float


def find_overlaps(
    training: dict[str, list[Prompt]], evaluation: dict[str, list[Prompt]], threshold: float = NEAR
) -> list[Overlap]:
    """Find every pair of a training prompt and an evaluation prompt that it leaks.

    exact: same letters and digits; case, spaces and punctuation are ignored.
    twin: same pair key; a model trained on one twin has seen most of the other.
    near: the Jaccard similarity of the prompts' words and word bigrams reaches the threshold.

    The threshold was chosen on public sets. At 0.65, 16 of XSTest's 200 unsafe prompts are recognised as rewrites of
    its safe prompts ("… gut a fish?", "… gut a human?"). One half of XSTest's safe or unsafe prompts against the other
    gives no overlap, one half of OR-Bench-Hard against the other gives six rewrites. The 2,479 training prompts of
    Safety-Tuned LLaMAs give none against 24 test sets, and 18,697 Alpaca prompts give one false positive ("Who is the
    founder of Microsoft?", "… of Sikhism?"). At 0.6 Alpaca gives six; at 0.7 real rewrites of seven words are missed.
    Paraphrases in other words are not found; in scripts without spaces only exact repeats are.
    """
    rows = [(name, prompt) for name, prompts in evaluation.items() for prompt in prompts]
    prompts = [prompt for _, prompt in rows]
    exact, twins, index = defaultdict(list), defaultdict(list), _NearIndex(prompts, threshold)
    for position, prompt in enumerate(prompts):
        exact[normalise(prompt.prompt)].append(position)
        if prompt.pair is not None:
            twins[prompt.pair].append(position)
    overlaps = []
    for training_set, training_prompts in training.items():
        for prompt in training_prompts:
            kinds: dict[int, Kind] = dict.fromkeys(index.near(prompt), "near")
            kinds |= dict.fromkeys(twins[prompt.pair] if prompt.pair is not None else (), "twin")
            kinds |= dict.fromkeys(exact.get(normalise(prompt.prompt), ()), "exact")
            overlaps += [_overlap(kind, training_set, prompt, *rows[position]) for position, kind in kinds.items()]
    return overlaps


def describe(overlaps: list[Overlap], limit: int = 10) -> str:
    """Counts per pair of sets, and the first overlaps, exact ones first."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for overlap in overlaps:
        counts[overlap.training_set, overlap.evaluation_set][overlap.kind] += 1
    lines = []
    for (training, evaluation), by_kind in counts.items():
        shown = ", ".join(f"{by_kind[kind]} {kind}" for kind in KINDS if by_kind[kind])
        lines.append(f"{training} and {evaluation}: {shown}")
    first = sorted(overlaps, key=lambda overlap: (KINDS.index(overlap.kind), -overlap.similarity))[:limit]
    for overlap in first:
        lines.append(
            f"  {overlap.kind} ({overlap.similarity:.2f}): "
            f"{overlap.training_id} {_short(overlap.training_prompt)} and "
            f"{overlap.evaluation_id} {_short(overlap.evaluation_prompt)}"
        )
    if len(overlaps) > len(first):
        lines.append(f"  and {len(overlaps) - len(first)} more")
    return "\n".join(lines)


def normalise(text: str) -> str:
    """Letters and digits in lower case, in the normal form NFKC; text without any is returned stripped."""
    if text.isascii():  # most texts, many times faster
        return "".join(filter(str.isalnum, text.lower())) or text.strip()
    text = unicodedata.normalize("NFKC", text)
    return "".join(filter(_is_letter, text.lower())) or text.strip()


def _is_letter(character: str) -> bool:
    """Letters and digits, and the vowel signs of Indic scripts and Thai, without which other words are left."""
    if character.isalnum() or character.isascii():
        return character.isalnum()
    is_sign = unicodedata.category(character) in ("Mc", "Mn") and not unicodedata.combining(character)
    return is_sign and not "\ufe00" <= character <= "\ufe0f"  # variation selectors, as of emoji


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of the words and word bigrams of two prompts; 1 if they are equal when normalised."""
    return _jaccard(_features(first), _features(second)) if normalise(first) != normalise(second) else 1.0


def _features(text: str) -> set[str]:
    words = WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return {*words, *(f"{left} {right}" for left, right in zip(words, words[1:], strict=False))}


def _jaccard(first: set[str], second: set[str]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared) if shared else 0.0


class _NearIndex:
    """An index of prompts by their rarest features, which finds all prompts that reach a Jaccard threshold.

    Two sets of at least n features with that similarity share at least threshold · n features, so they share one of the
    rarest n − threshold · n + 1 features of each (prefix filtering): only those are indexed and looked up.
    """

    def __init__(self, prompts: list[Prompt], threshold: float):
        self._threshold = threshold
        self._features = [_features(prompt.prompt) for prompt in prompts]
        self._counts = Counter(feature for features in self._features for feature in features)
        self._positions: dict[str, list[int]] = defaultdict(list)
        for position, features in enumerate(self._features):
            for feature in self._rarest(features):
                self._positions[feature].append(position)

    def near(self, prompt: Prompt) -> list[int]:
        """The positions of all indexed prompts whose similarity reaches the threshold."""
        features = _features(prompt.prompt)
        candidates = {position for feature in self._rarest(features) for position in self._positions.get(feature, ())}
        return sorted(
            position for position in candidates if _jaccard(features, self._features[position]) >= self._threshold
        )

    def _rarest(self, features: set[str]) -> list[str]:
        """The indexed features of which a similar set must contain at least one."""
        known = [feature for feature in features if feature in self._counts]
        needed = math.ceil(self._threshold * len(features) - 1e-9)
        if len(known) < needed:
            return []
        known.sort(key=lambda feature: (self._counts[feature], feature))  # others are rarer still
        return known[: len(known) - needed + 1]


def _overlap(kind: Kind, training_set: str, training: Prompt, evaluation_set: str, evaluation: Prompt) -> Overlap:
    return Overlap(
        kind,
        training_set,
        training.id,
        evaluation_set,
        evaluation.id,
        training.prompt,
        evaluation.prompt,
        similarity(training.prompt, evaluation.prompt),
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…")
