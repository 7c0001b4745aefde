"""Prompts of the evaluation data that the training data holds, in the same or nearly the same words."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from dcr_ds.data.records import Prompt

Kind = Literal["exact", "twin", "near"]
KINDS = ("exact", "twin", "near")
NEAR = 0.65
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training prompt and the evaluation prompt it gives away."""

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
    """Every training prompt that gives an evaluation prompt away, once for each such pair of rows.

    exact: the same letters and digits, whatever the case, spaces and punctuation.
    twin: the same pair key; who trained on one twin has seen most of the other.
    near: the Jaccard similarity of the prompts' words and pairs of neighbouring words reaches the threshold.

    The threshold was chosen on public sets. At 0.65, 16 of XSTest's 200 unsafe prompts are found to be
    rewrites of its safe ones ("… gut a fish?", "… gut a human?"); one half of XSTest's safe or unsafe prompts
    gives no alarm against the other half, and one half of OR-Bench-Hard six rewrites. Safety-Tuned LLaMAs'
    2,479 training prompts give none against 24 test sets, and 18,697 Alpaca prompts a single false one ("Who
    is the founder of Microsoft?", "… of Sikhism?"). At 0.6 Alpaca gives six; at 0.7 real rewrites of seven
    words are missed. A paraphrase in other words is not found, nor anything but exact repeats in a script
    written without spaces.
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
            found: dict[int, Kind] = dict.fromkeys(index.near(prompt), "near")
            found |= dict.fromkeys(twins[prompt.pair] if prompt.pair is not None else (), "twin")
            found |= dict.fromkeys(exact.get(normalise(prompt.prompt), ()), "exact")
            overlaps += [_overlap(kind, training_set, prompt, *rows[position]) for position, kind in found.items()]
    return overlaps


def describe(overlaps: list[Overlap], limit: int = 10) -> str:
    """Counts by pair of sets, and the first rows, exact ones before the others."""
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
    """Letters and digits in lower case; text without any stays as it is."""
    return "".join(character for character in text.lower() if character.isalnum()) or text.strip()


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two prompts' words and pairs of neighbours; 1 if they are the same."""
    return _jaccard(_features(first), _features(second)) if normalise(first) != normalise(second) else 1.0


def _features(text: str) -> set[str]:
    words = WORD.findall(text.lower())
    return {*words, *(f"{left} {right}" for left, right in zip(words, words[1:], strict=False))}


def _jaccard(first: set[str], second: set[str]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared) if shared else 0.0


class _NearIndex:
    """An index of prompts by their rarest features, which finds all that reach a Jaccard threshold.

    Two sets of n features or more that are that similar share at least threshold · n of them, so one of the
    rarest n − threshold · n + 1 of either is shared (prefix filtering): only these are indexed and looked up.
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
        """The positions of all indexed prompts as similar as the threshold asks."""
        features = _features(prompt.prompt)
        candidates = {position for feature in self._rarest(features) for position in self._positions.get(feature, ())}
        return sorted(
            position for position in candidates if _jaccard(features, self._features[position]) >= self._threshold
        )

    def _rarest(self, features: set[str]) -> list[str]:
        """The known ones of the features that a similar set must share one of."""
        known = [feature for feature in features if feature in self._counts]
        needed = math.ceil(self._threshold * len(features) - 1e-9)
        if len(known) < needed:
            return []
        known.sort(key=lambda feature: (self._counts[feature], feature))  # unknown ones, rarer still, come before
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


def _short(text: str, length: int = 70) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= length else text[: length - 1] + "…")
