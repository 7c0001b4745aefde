"""Confound check: how well superficial features of prompts separate the two sets before any training.

If length, punctuation or the source alone separates the sets, a contrastive loss may learn that instead of harm.

Legend: n prompts, F features.
"""

import hashlib
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.probe import NUM_FOLDS, held_out_scores, standardised_gram
from dcr_ds.discernment.couples import AucInterval, auc_interval, pair_folds
from dcr_ds.errors import UserError

WARN_AUC = 0.75  # a feature that ranks three of four couples correctly separates the sets as well as most hidden layers
MAX_PROMPTS = 500  # of each set; the regression takes O(n³)
FEWEST_PROMPTS = 2 * NUM_FOLDS  # of each set
ADVICE = {
    "characters": "match the lengths of the sets, or use matched pairs",
    "words": "match the lengths of the sets, or use matched pairs",
    "punctuation": "write both sets in one style, or use matched pairs",
    "bag of words": "part of this is meaning, as harmful prompts use harmful words; how much shows in the row 'other "
    "sources', and the layer probe should lie clearly above it",
    "source": "take both sets from the same sources",
}
NO_AUC = AucInterval(*[float("nan")] * 4)
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Confound:
    """How well one kind of feature separates the sets: held-out AUC, note on what it is, and a warning or None."""

    name: str
    auc: AucInterval
    note: str
    warning: str | None = None


def check_confounds(seemingly_toxic: Sequence[Prompt], toxic: Sequence[Prompt]) -> list[Confound]:
    """Held-out AUC of each kind of superficial feature, by logistic regressions cross-validated over pairs.

    - characters, words: logarithm of the length.
    - punctuation: how often each ASCII punctuation mark occurs.
    - bag of words: which words occur, in any order.
    - source: the name of the source (the column `category`), if there are several.
    - other sources: the bag of words fitted without a source and tested within it. What remains above 0.5 is shared by
      the sources, such as harmful words; the difference to "bag of words" is their own vocabulary. Never a warning.

    A set of more than 500 prompts is sampled. Twins stay together in sampling, folds and intervals.

    Raises:
        UserError: too few prompts or pairs of a set.
    """
    if problem := obstacle(seemingly_toxic, toxic):
        raise UserError(problem)
    sets = [_sample(rows) for rows in (seemingly_toxic, toxic)]
    rows = [row for sample in sets for row in sample]
    labels = np.repeat([0, 1], [len(sample) for sample in sets])
    keys = [f"pair {row.pair}" if row.pair is not None else f"row {index}" for index, row in enumerate(rows)]
    pairs = np.unique(keys, return_inverse=True)[1]
    folds = pair_folds(labels, pairs, NUM_FOLDS)
    texts = [row.prompt for row in rows]

    def measured(gram: np.ndarray, by: np.ndarray = folds) -> AucInterval:
        return auc_interval(held_out_scores(gram, labels, by), labels, pairs, by)

    words = _word_gram(texts)
    lengths = [
        _judged("characters", measured(_length_gram(texts, len)), "length in characters"),
        _judged("words", measured(_length_gram(texts, lambda text: len(text.split()))), "length in words"),
        _judged("punctuation", measured(standardised_gram(_punctuation(texts))), "how often each mark occurs"),
        _judged("bag of words", measured(words), "which words occur"),
    ]
    sources = [row.category or "" for row in rows]
    if len(set(sources)) < 2:
        return lengths
    return [*lengths, _source(sources, measured), _other_sources(words, sources, labels, pairs, measured)]


def obstacle(seemingly_toxic: Sequence[Prompt], toxic: Sequence[Prompt]) -> str | None:
    """Why the sets are too small for the check; None if they are not."""
    for rows, name in ((seemingly_toxic, "seemingly_toxic"), (toxic, "toxic")):
        if len(rows) < FEWEST_PROMPTS:
            return f"data.{name}: {len(rows)} prompts are too few for the confound check; it needs {FEWEST_PROMPTS}"
        pairs = {index if row.pair is None else row.pair for index, row in enumerate(rows)}
        if len(pairs) < NUM_FOLDS:
            return f"data.{name}: {len(pairs)} pairs are too few for the confound check; it needs {NUM_FOLDS}"
    return None


def _sample(rows: Sequence[Prompt]) -> list[Prompt]:
    """At most MAX_PROMPTS rows, the first by a hash of the pair or the id: twins have the same rank in both sets."""

    def rank(row: Prompt) -> bytes:
        return hashlib.sha256((row.pair if row.pair is not None else row.id).encode()).digest()

    return sorted(rows, key=rank)[:MAX_PROMPTS] if len(rows) > MAX_PROMPTS else list(rows)


def _judged(name: str, auc: AucInterval, note: str) -> Confound:
    if not (auc.value >= WARN_AUC and auc.low > 0.5):
        return Confound(name, auc, note)
    warning = (
        f"the feature {name!r} alone separates the two prompt sets (held-out AUC {auc.value:.2f}; warning from "
        f"{WARN_AUC} on), so refine may learn it instead of harm: {ADVICE[name]}"
    )
    return Confound(name, auc, note, warning)


def _length_gram(texts: Sequence[str], length: Callable[[str], int]) -> np.ndarray:
    return standardised_gram(np.array([[np.log1p(length(text))] for text in texts]))


def _punctuation(texts: Sequence[str]) -> np.ndarray:
    return np.array([[np.log1p(text.count(mark)) for mark in string.punctuation] for text in texts])


def _word_gram(texts: Sequence[str]) -> np.ndarray:
    """Cosine of the sets of words of two prompts [n, n]."""
    bags = [set(WORD.findall(text.lower())) for text in texts]
    places = {word: place for place, word in enumerate(sorted(set().union(*bags)))}
    occurs = np.zeros((len(bags), max(1, len(places))), dtype=np.float32)
    for row, bag in zip(occurs, bags, strict=True):
        row[[places[word] for word in bag]] = 1 / np.sqrt(max(1, len(bag)))
    return (occurs @ occurs.T).astype(np.float64)


def _source(sources: Sequence[str], measured: Callable[..., AucInterval]) -> Confound:
    names = sorted(set(sources))
    return _judged("source", measured(standardised_gram(np.array(sources)[:, None] == names)), f"{len(names)} sources")


def _other_sources(
    words: np.ndarray, sources: Sequence[str], labels: np.ndarray, pairs: np.ndarray, measured: Callable
) -> Confound:
    """The bag of words, tested within each source by a fit on all others."""
    numbers = np.unique(sources, return_inverse=True)[1]
    _, first_of_pair, pair_of = np.unique(pairs, return_index=True, return_inverse=True)
    folds = numbers[first_of_pair][pair_of]  # twins of two sources count with one of them
    shared = [number for number in np.unique(folds) if len(set(labels[folds == number])) == 2]
    fitted = all(len(set(labels[folds != number])) == 2 for number in np.unique(folds))
    if not shared or not fitted:
        note = "cannot be measured: no source has prompts of both sets, or only one has"
        return Confound("other sources", NO_AUC, note)
    return Confound(
        "other sources", measured(words, folds), f"bag of words, tested within {len(shared)} unseen sources"
    )
