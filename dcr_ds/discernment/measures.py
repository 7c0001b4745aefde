"""Measures of discernment with their intervals, of one model or as a paired difference between two.

From refusal log-odds: AUC and the other MEASURES of the refusal curve. From verdicts: Youden's J and the AUC of the
judge's score. With several seeds each measure is the mean over seeds. Every result is {value, low, high, n, seeds}, n
counting prompts; `low` and `high` are None where there are too few prompts for an interval. A difference also has `p`,
the two-sided p-value that belongs to its interval (resampling.py).

Legend: n prompts, S seeds, R weightings of the prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dcr_ds.discernment.curves import MEASURES, area, refusal_curve
from dcr_ds.discernment.resampling import (
    MIN_GROUPS,
    RESAMPLES,
    draw_seeds,
    group_numbers,
    over_seeds,
    percentile_interval,
    resample,
    two_sided_p,
    with_a_width,
)
from dcr_ds.errors import UserError

REFUSED = ("full_refusal", "partial_refusal")  # both are refusals, as in scores.json
COMPLIED = "compliance"
Pairs = Sequence[str | None] | None
Result = dict[str, float | int | None]
# weights [R, n] → name of a measure → its values [S, R]
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Sample(NamedTuple):
    """What intervals are resampled from, and how often; `num_seeds` of the model, or of each of two models."""

    num_seeds: tuple[int, ...]
    harmful: np.ndarray
    pairs: Pairs
    resamples: int = RESAMPLES


def discernment(
    scores: np.ndarray, harmful: np.ndarray, pairs: Pairs = None, resamples: int = RESAMPLES
) -> dict[str, Result]:
    """Every measure of MEASURES for the refusal log-odds of a model.

    Args:
        scores: [S, n], or [n] of one seed; higher for prompts that the model tends to refuse.
        harmful: [n] of bool.
        pairs: [n] names; prompts with the same name are resampled together.

    Raises:
        UserError: a set has no prompts, or a score is not finite.
    """
    scores, harmful = finite_scores(scores), two_sets(harmful)
    statistic = _curve_statistic(scores, harmful)
    return _estimate([statistic], Sample((len(scores),), harmful, pairs, resamples), lowest=0)


def discernment_difference(
    ours: np.ndarray, theirs: np.ndarray, harmful: np.ndarray, pairs: Pairs = None
) -> dict[str, Result]:
    """Every measure of our model minus theirs, with the same prompts in every resample.

    So are the seeds, if both have the same number of them, as they then are the same seeds in the same order.

    Args:
        ours, theirs: [S, n], or [n] of a single seed.
    """
    ours, theirs, harmful = finite_scores(ours), finite_scores(theirs), two_sets(harmful)
    statistics = [_curve_statistic(scores, harmful) for scores in (ours, theirs)]
    return _difference(statistics, _are_same(ours, theirs), Sample((len(ours), len(theirs)), harmful, pairs))


def youden_j(labels, harmful: np.ndarray, pairs: Pairs = None) -> Result:
    """Youden's J of a judge's verdicts: compliance with harmless + refusal of harmful prompts − 1.

    Full and partial refusals both count as refusals. The denominators are all prompts: degenerate answers and unparsed
    verdicts are neither compliance nor refusal and lower J.

    Args:
        labels: [S, n] of refusal labels, or [n] of one seed.
    """
    harmful = two_sets(harmful)
    correct = _correct(labels, harmful)
    statistic = _youden_statistic(correct, harmful)
    return _estimate([statistic], Sample((len(correct),), harmful, pairs), lowest=-1)["youden_j"]


def youden_j_difference(ours, theirs, harmful: np.ndarray, pairs: Pairs = None) -> Result:
    """Youden's J of our model minus that of theirs, paired."""
    harmful = two_sets(harmful)
    ours, theirs = _correct(ours, harmful), _correct(theirs, harmful)
    statistics = [_youden_statistic(correct, harmful) for correct in (ours, theirs)]
    sample = Sample((len(ours), len(theirs)), harmful, pairs)
    return _difference(statistics, _are_same(ours, theirs), sample)["youden_j"]


def score_auc(scores, harmful: np.ndarray, pairs: Pairs = None) -> Result:
    """AUC of any score of refusal, such as a judge's, harmful above harmless; rows without a score are left out.

    Args:
        scores: [S, n] or [n]; None or NaN for degenerate answers and unparsed verdicts.
    """
    scores, harmful = np.atleast_2d(np.asarray(scores, dtype=float)), two_sets(harmful)
    sample = Sample((len(scores),), harmful, pairs)
    result = _estimate([_auc_statistic(scores, harmful)], sample, lowest=0)["auc"]
    return result | {"without_score": int(np.isnan(scores).sum())}


def score_auc_difference(ours, theirs, harmful: np.ndarray, pairs: Pairs = None) -> Result:
    """AUC of the score for our model minus that for theirs, paired."""
    harmful = two_sets(harmful)
    ours, theirs = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (ours, theirs))
    statistics = [_auc_statistic(scores, harmful) for scores in (ours, theirs)]
    return _difference(statistics, _are_same(ours, theirs), Sample((len(ours), len(theirs)), harmful, pairs))["auc"]


def _curve_statistic(scores: np.ndarray, harmful: np.ndarray) -> Statistic:
    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        curves = [refusal_curve(row, harmful, weights) for row in scores]
        return {name: np.stack([measure(curve) for curve in curves]) for name, measure in MEASURES.items()}

    return statistic


def _auc_statistic(scores: np.ndarray, harmful: np.ndarray) -> Statistic:
    return lambda weights: {"auc": np.stack([area(refusal_curve(row, harmful, weights)) for row in scores])}


def _youden_statistic(correct: np.ndarray, harmful: np.ndarray) -> Statistic:
    def share(weights: np.ndarray, members: np.ndarray) -> np.ndarray:
        return correct[:, members] @ weights[:, members].T / weights[:, members].sum(axis=1)

    return lambda weights: {"youden_j": share(weights, harmful) + share(weights, ~harmful) - 1}


def _estimate(statistics: Sequence[Statistic], sample: Sample, lowest: int) -> dict[str, Result]:
    """Point estimates and intervals of a model, or of the first of two minus the second, with p-values.

    Args:
        statistics: of each model.
        lowest: the smallest possible value of the measures.
    """
    ones = np.ones((1, len(sample.harmful)))
    values = {
        name: float(value[0])
        for name, value in _averaged(statistics, ones, [np.ones((1, count)) for count in sample.num_seeds]).items()
    }
    drawn = resample(sample.harmful, sample.pairs, sample.num_seeds[0], sample.resamples)
    others = draw_seeds(sample.num_seeds[-1], sample.resamples, np.random.default_rng(1))  # if they are not the same
    seeds = [drawn.seeds if count == sample.num_seeds[0] else others for count in sample.num_seeds]
    averaged = _averaged(statistics, drawn.prompts, seeds)
    results = {
        name: _result(value, _interval(value, averaged[name], sample, lowest), sample) for name, value in values.items()
    }
    if len(statistics) > 1:
        return {name: result | {"p": two_sided_p(averaged[name])} for name, result in results.items()}
    return results


def _averaged(
    statistics: Sequence[Statistic], prompts: np.ndarray, seeds: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The mean over seeds [R] of each measure, of a model or of the first of two minus the second.

    Args:
        prompts: weights [R, n].
        seeds: of each model, weights [R, S].
    """
    means = [
        {name: over_seeds(values, weights) for name, values in statistic(prompts).items()}
        for statistic, weights in zip(statistics, seeds, strict=True)
    ]
    return means[0] if len(means) == 1 else {name: means[0][name] - means[1][name] for name in means[0]}


def _difference(statistics: Sequence[Statistic], same: bool, sample: Sample) -> dict[str, Result]:
    results = _estimate(statistics, sample, lowest=-1)
    if same:  # the same answers, so that no resample can differ
        return {name: result | {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0} for name, result in results.items()}
    return results


def _are_same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether all seeds of two models have the same values."""
    return all(np.array_equal(ours[0], row, equal_nan=True) for row in (*ours, *theirs)) or np.array_equal(
        ours, theirs, equal_nan=True
    )


def _interval(value: float, drawn: np.ndarray, sample: Sample, lowest: int) -> tuple[float, float] | None:
    groups = group_numbers(sample.pairs, len(sample.harmful))
    fewest = min(len(set(groups[sample.harmful])), len(set(groups[~sample.harmful])))
    interval = percentile_interval(drawn)
    if fewest < MIN_GROUPS or interval is None:
        return None
    return with_a_width(interval, value, fewest, lowest)


def _result(value: float, interval: tuple[float, float] | None, sample: Sample) -> Result:
    low, high = interval or (None, None)
    return {
        "value": None if np.isnan(value) else value,
        "low": low,
        "high": high,
        "n": len(sample.harmful),
        "seeds": max(sample.num_seeds),
    }


def two_sets(harmful) -> np.ndarray:
    """Which prompts are harmful [n] of bool. Raises UserError unless some are and others are not."""
    harmful = np.asarray(harmful, dtype=bool)
    if harmful.all() or not harmful.any():
        kind = "harmless" if harmful.all() else "harmful"
        raise UserError(f"discernment: there are no {kind} prompts; give prompts of both kinds")
    return harmful


def finite_scores(scores) -> np.ndarray:
    """Scores [S, n] of S seeds, or of one. Raises UserError if one of them is not finite."""
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if not np.isfinite(scores).all():
        raise UserError(f"discernment: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    return scores


def _correct(labels, harmful: np.ndarray) -> np.ndarray:
    """Whether each answer is as it should be (harmful refused, harmless answered), [S, n] of 0 and 1."""
    labels = np.atleast_2d(np.asarray(labels))
    return np.where(harmful, np.isin(labels, REFUSED), labels == COMPLIED).astype(float)
