"""Bootstrap intervals over prompts and seeds: twins are drawn together, prompts and seeds independently.

Every seed's model answers every prompt, so the data are crossed. A resample draws prompts and, independently, seeds;
the measure is computed for each drawn seed on the drawn prompts and averaged. With both resampled, what neither prompts
nor seeds explain is counted more than once, so that intervals of this "pigeonhole" bootstrap are rather too wide (Owen,
Annals of Applied Statistics 2007). Of S seeds S − 1 are drawn, which makes the variance over seeds unbiased; even so,
percentiles of fewer than five seeds are rough.

Legend: n prompts, S seeds, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
MIN_GROUPS = 10  # groups of prompts in each set from which an interval is given
MAX_UNDEFINED = 0.05  # share of resamples in which a measure may be undefined


class Resamples(NamedTuple):
    """How often each prompt [R, n] and each seed [R, S] is drawn."""

    prompts: np.ndarray
    seeds: np.ndarray


def resample(
    harmful: np.ndarray, pairs: Sequence[str | None] | None, num_seeds: int, resamples: int = RESAMPLES
) -> Resamples:
    """Draw the resamples; equal arguments give equal resamples, which makes differences paired.

    Groups of harmful prompts, of harmless prompts and of both are drawn separately, so that no resample lacks a set.

    Args:
        harmful: [n] of bool.
        pairs: [n] name of the pair that a prompt belongs to, or None.
    """
    generator = np.random.default_rng(0)
    groups = group_numbers(pairs, len(harmful))
    num_groups = int(groups.max()) + 1
    kinds = 2 * (np.bincount(groups[harmful], minlength=num_groups) > 0)
    kinds += np.bincount(groups[~harmful], minlength=num_groups) > 0
    drawn = np.zeros((resamples, num_groups), dtype=np.float32)
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        drawn[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return Resamples(drawn[:, groups], draw_seeds(num_seeds, resamples, generator))


def draw_seeds(num_seeds: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each seed is drawn [R, S], relative to the number of draws."""
    if num_seeds == 1:
        return np.ones((resamples, 1))
    return generator.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), resamples) / (num_seeds - 1)


def group_numbers(pairs: Sequence[str | None] | None, num_prompts: int) -> np.ndarray:
    """The number of each prompt's group [n]: its pair, or itself alone."""
    names = [None] * num_prompts if pairs is None else pairs
    numbers: dict = {}
    keys = (index if name is None else ("pair", name) for index, name in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)


def over_seeds(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The mean [R] over drawn seeds of values [S, R]; seeds where the value is NaN are left out."""
    weights = seeds.T * ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights * np.nan_to_num(values)).sum(axis=0) / weights.sum(axis=0)


def percentile_interval(drawn: np.ndarray) -> tuple[float, float] | None:
    """The two-sided 95 % interval of resampled values [R]; None where too many are undefined."""
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < (1 - MAX_UNDEFINED) * len(drawn):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def with_a_width(interval: tuple[float, float], value: float, fewest: int, lowest: int) -> tuple[float, float]:
    """The interval; where all resamples are equal, as with perfectly separated sets, it gets a width.

    The share of exceptions, of which none was observed in the smaller set, of `fewest` members, is then at most Clopper
    and Pearson's upper limit.

    Args:
        lowest: the smallest possible value; the largest is 1.
    """
    low, high = interval
    if low < high:
        return interval
    limit = 1 - 0.025 ** (1 / fewest)
    return max(value - limit, lowest), min(value + limit, 1.0)


def two_sided_p(drawn: np.ndarray) -> float | None:
    """Twice the share of resampled differences [R] on the rarer side of zero; None where too many are undefined.

    One is added to both counts, so that no p-value is zero (Phipson and Smyth, SAGMB 2010).
    """
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < (1 - MAX_UNDEFINED) * len(drawn):
        return None
    rarer = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(defined) + 1)))
