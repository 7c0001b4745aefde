"""AUC counted over couples of a prompt with label 0 and one with label 1, with intervals and folds.

Unlike the curves of `curves.py`, this supports scores that are comparable only within some couples: those of models
fitted without the couple, or within a fold.

Legend: n prompts, n₀ and n₁ per label, D width, P pairs. A pair is a group of prompts that belong together: twins share
a pair number, a prompt without a twin has its own.
"""

from typing import NamedTuple

import numpy as np

TIE = 1e-12  # scores closer than this, relative to the largest squared norm, are equal up to rounding
RESAMPLES = 1000


class AucInterval(NamedTuple):
    """An AUC with its 95 % percentile interval and its standard error; NaN if no couple can be compared."""

    value: float
    low: float
    high: float
    error: float


def class_mean_auc(vectors: np.ndarray, labels: np.ndarray, pairs: np.ndarray) -> float:
    """AUC of the direction between the class means of unit vectors; NaN if no couple is counted.

    See `class_mean_wins` for its definition and the arguments.
    """
    wins, counted = class_mean_wins(vectors, labels, pairs)
    return float(wins.sum() / counted.sum()) if counted.any() else float("nan")


def class_mean_interval(vectors: np.ndarray, labels: np.ndarray, pairs: np.ndarray) -> AucInterval:
    """`class_mean_auc` with an interval from resampling pairs; the class means are not estimated again."""
    wins, counted = class_mean_wins(vectors, labels, pairs)
    return _resampled(wins, counted.astype(float), pairs[labels == 0], pairs[labels == 1])


def class_mean_wins(vectors: np.ndarray, labels: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which couples the direction between the class means ranks correctly, each scored without its own pairs.

    A couple (i, j) of labels 0 and 1 is a win if (μ₁ − μ₀)·(u_j − u_i) > 0, for unit vectors u and the class means μ
    over all other pairs. A tie is half a win. A couple is not counted if a class has no other pair.

    The means of a couple follow from the sums over classes and pairs, and their products with the vectors from one Gram
    matrix: O(n²·D) instead of O(n₀·n₁·n·D).

    Args:
        vectors: [n, D]; only their directions count.
        labels: [n] of 0 and 1; other labels are left out.
        pairs: [n] integers.

    Returns:
        wins: [n₀, n₁] of 0, 0.5 and 1 in float64, 0 where not counted.
        counted: [n₀, n₁] bool.
    """
    kept = (labels == 0) | (labels == 1)
    labels, pairs = labels[kept], np.unique(pairs[kept], return_inverse=True)[1]
    unit = vectors[kept].astype(np.float64)
    unit /= np.maximum(np.sqrt(np.einsum("nd,nd->n", unit, unit)), 1e-12)[:, None]
    unit -= unit.mean(axis=0) if len(unit) else 0  # scores do not change, and small differences keep their digits
    gram = unit @ unit.T
    first, second = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    means = [_class_means(gram, members, pairs, first, second) for members in (first, second)]
    scores = means[1] - means[0]
    counted = ~np.isnan(scores)
    tie = TIE * gram.diagonal().max(initial=0)
    return ((scores > tie) + 0.5 * (np.abs(scores) <= tie)) * counted, counted


def _class_means(
    gram: np.ndarray, members: np.ndarray, pairs: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """μ·(u_j − u_i) [n₀, n₁] for a class mean μ without the pairs of i and j; NaN where no member is left."""
    num_pairs = pairs.max(initial=-1) + 1
    sizes = np.bincount(pairs[members], minlength=num_pairs)  # [P] members of the class in each pair
    of_class = gram[:, members].sum(axis=1)  # [n]
    of_pair = np.zeros((len(gram), num_pairs))  # [n, P]
    ordered = members[np.argsort(pairs[members], kind="stable")]
    occupied = np.flatnonzero(sizes)
    if len(occupied):
        starts = np.concatenate([[0], np.cumsum(sizes[occupied])[:-1]])
        of_pair[:, occupied] = np.add.reduceat(gram[:, ordered], starts, axis=1)
    i_pairs, j_pairs = pairs[first], pairs[second]
    apart = i_pairs[:, None] != j_pairs[None, :]  # the pair of twins is left out once, not twice
    along_j = of_class[second] - of_pair[np.ix_(second, i_pairs)].T - apart * of_pair[second, j_pairs]
    along_i = of_class[first] - of_pair[first, i_pairs]
    along_i = along_i[:, None] - apart * of_pair[np.ix_(first, j_pairs)]
    left = len(members) - sizes[i_pairs][:, None] - apart * sizes[j_pairs]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 0, (along_j - along_i) / left, np.nan)


def auc_interval(
    scores: np.ndarray, labels: np.ndarray, pairs: np.ndarray, folds: np.ndarray | None = None
) -> AucInterval:
    """AUC of scores with an interval from resampling pairs, so that twins are drawn together. Ties count half.

    Args:
        folds: [n] number of the fold whose model computed each score. Only scores within a fold are compared, as scores
            of different models have no common scale.
    """
    first, second = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    difference = scores[second][None, :] - scores[first][:, None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    counted = np.ones_like(wins) if folds is None else (folds[first][:, None] == folds[second][None, :]).astype(float)
    return _resampled(wins * counted, counted, pairs[first], pairs[second])


def _resampled(wins: np.ndarray, counted: np.ndarray, first: np.ndarray, second: np.ndarray) -> AucInterval:
    """Interval of Σ wins / Σ counted [n₀, n₁] over resampled pairs; first [n₀] and second [n₁] are pair numbers."""
    if not counted.any():
        return AucInterval(*[float("nan")] * 4)
    _, indices = np.unique(np.concatenate([first, second]), return_inverse=True)
    num_pairs = indices.max() + 1
    times = np.random.default_rng(0).multinomial(num_pairs, np.full(num_pairs, 1 / num_pairs), RESAMPLES)
    times = times[:, indices].astype(float)  # [resamples, n] how often each prompt was drawn
    times_first, times_second = times[:, : len(first)], times[:, len(first) :]
    won, total = (((times_first @ couples) * times_second).sum(axis=1) for couples in (wins, counted))
    drawn = won[total > 0] / total[total > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return AucInterval(float(wins.sum() / counted.sum()), float(low), float(high), float(drawn.std(ddof=1)))


def pair_folds(labels: np.ndarray, pairs: np.ndarray, num_folds: int) -> np.ndarray:
    """Fold [n] of each prompt: pairs stay together, and each kind of pair is spread evenly over the folds.

    Pairs with the same number of prompts per label are of one kind: twins, single prompts of label 0, single prompts of
    label 1.
    """
    _, pairs = np.unique(pairs, return_inverse=True)
    num_pairs = pairs.max() + 1
    kinds = np.stack([np.bincount(pairs[labels == label], minlength=num_pairs) for label in (0, 1)], axis=1)
    shuffled = np.random.default_rng(0).permutation(num_pairs)
    order = shuffled[np.lexsort(kinds[shuffled].T)]
    fold_of_pair = np.empty(num_pairs, dtype=int)
    fold_of_pair[order] = np.arange(num_pairs) % num_folds
    return fold_of_pair[pairs]
