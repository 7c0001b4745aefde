"""Rates, differences and their intervals; agreement of judges. All intervals are two-sided at 95%."""

from collections.abc import Hashable, Mapping, Sequence
from math import comb, sqrt
from typing import TypeVar

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution
RESAMPLES = 10_000
ROUNDING = 1e-20  # of the variance of equal shares
Interval = tuple[float, float]
Prompted = TypeVar("Prompted", bound=Hashable)


def wilson_interval(successes: float, total: int) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) without observations.

    Unlike the normal approximation it stays within [0, 1] and has a positive width at 0 and 1, where refusal rates of
    small benchmarks often lie.
    """
    if total == 0:
        return 0.0, 1.0
    share, z = successes / total, Z_95
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At 0 and n the bound is exactly 0 or 1; the formula deviates by rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return low, high


def rate(successes: float, total: int) -> dict[str, float | int | None]:
    """A proportion with its Wilson interval, as written to files."""
    low, high = wilson_interval(successes, total)
    return {"value": successes / total if total else None, "low": low, "high": high, "n": total}


def worst_case(outcomes: Mapping[str, Mapping[Prompted, bool]]) -> dict[Prompted, bool]:
    """Whether at least one attack succeeded on a prompt, for the prompts that all attacks were tried on.

    Args:
        outcomes: per attack, whether it succeeded, by prompt (its id, for example).
    """
    by_attack = list(outcomes.values())
    return {
        prompt: any(successes[prompt] for successes in by_attack)
        for prompt in (by_attack[0] if by_attack else ())
        if all(prompt in successes for successes in by_attack)
    }


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of the unweighted mean of independent estimates, computed from their intervals.

    MOVER (Zou and Donner, Statistics in Medicine 2008): the squared distances to the lower bounds add up, and likewise
    for the upper bounds. With Wilson intervals, the mean has a positive width even if every rate is 0 or 1.
    """
    mean, size = sum(values) / len(values), len(values)
    below = sqrt(sum((value - low) ** 2 for value, (low, _) in zip(values, intervals, strict=True))) / size
    above = sqrt(sum((high - value) ** 2 for value, (_, high) in zip(values, intervals, strict=True))) / size
    return mean - below, mean + above


def paired_bootstrap(differences: Sequence[np.ndarray], resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of the mean difference between two models that answered the same prompts.

    Prompts are resampled, so both answers to a prompt stay together; each benchmark is resampled separately, and the
    mean over benchmarks is taken. As a difference is −1, 0 or 1, a resample of a benchmark is one multinomial draw of
    the three counts: exact, and independent of the number of prompts.

    Args:
        differences: per benchmark, outcome of the first model minus that of the second, [n] of −1, 0, 1.
    """
    rng = np.random.default_rng(0)
    means = np.zeros(resamples)
    for benchmark in differences:
        counts = np.array([np.sum(benchmark == value) for value in (-1, 0, 1)])
        drawn = rng.multinomial(len(benchmark), counts / len(benchmark), size=resamples)  # [resamples, 3]
        means += (drawn[:, 2] - drawn[:, 0]) / len(benchmark)
    low, high = np.quantile(means / len(differences), [0.025, 0.975])
    return (float(low), float(high)) if low < high else _of_equal(float(low), sum(map(len, differences)))


def _of_equal(difference: float, size: int) -> Interval:
    """The interval where all of `size` prompts have the same difference, so that none shows how rare others are.

    Clopper and Pearson's bound for 0 of n does.
    """
    unseen = 1 - 0.025 ** (1 / size)
    return max(difference - unseen, -1.0), min(difference + unseen, 1.0)


def mcnemar_p(differences: np.ndarray) -> float:
    """Exact two-sided p value of McNemar's test that equally many prompts become better and worse.

    Args:
        differences: [n] of −1, 0, 1; only those that are not 0 count.
    """
    better, worse = int(np.sum(differences == 1)), int(np.sum(differences == -1))
    changed = better + worse
    tail = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p values for multiple comparisons, in the given order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_interval(*models: Sequence[np.ndarray]) -> Interval:
    """The interval of a model's rate over seeds and prompts; with two models, of the first rate minus the second.

    Seeds and prompts are crossed samples: every seed's model answers every prompt. The variance of the mean is the
    variance of the prompts' means over the number of prompts plus, per model, the variance of its seeds' means over the
    number of seeds. The interaction is in both terms, so the sum is conservative (as Owen shows for the pigeonhole
    bootstrap, Annals of Applied Statistics 2007). Student's t with Satterthwaite's degrees of freedom accounts for few
    seeds, for which a bootstrap is too narrow. With several benchmarks, the rate is their unweighted mean.

    Args:
        models: per model and benchmark, whether the answer was wanted, [seeds, prompts] of 0 and 1; the same prompts in
            the same order. A single seed or a single prompt adds no variance, as its spread is unknown.
    """
    ours, theirs = models[0], models[1] if len(models) > 1 else None
    prompts = [outcomes.mean(axis=0) for outcomes in ours]  # by benchmark [prompts]
    if theirs is not None:
        prompts = [outcomes - other.mean(axis=0) for outcomes, other in zip(prompts, theirs, strict=True)]
    # each part: variance of the mean, degrees of freedom
    parts = [
        (float(rates.var(ddof=1)) / len(rates) / len(prompts) ** 2, len(rates) - 1)
        for rates in prompts
        if len(rates) > 1
    ]
    for model in models:
        seeds = np.mean([benchmark.mean(axis=1) for benchmark in model], axis=0)  # [seeds]
        if len(seeds) > 1:
            parts.append((float(seeds.var(ddof=1)) / len(seeds), len(seeds) - 1))
    variance = sum(part for part, _ in parts)
    means = [float(rates.mean()) for rates in prompts]
    if variance < ROUNDING:  # all answers are equal: as wide as for one seed
        if theirs is not None:
            return _of_equal(sum(means) / len(means), sum(map(len, prompts)))
        return mean_interval(
            means,
            [wilson_interval(round(mean * len(rates)), len(rates)) for mean, rates in zip(means, prompts, strict=True)],
        )
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    mean, half, least = sum(means) / len(means), student_t(freedom) * sqrt(variance), 0.0 if theirs is None else -1.0
    return max(mean - half, least), min(mean + half, 1.0)


def student_t(freedom: float) -> float:
    """The two-sided 95% quantile of Student's t, for any real number of degrees of freedom ≥ 1.

    With t = √ν tan θ the density of θ is proportional to cos θ^(ν−1), on a finite range.
    """
    freedom = min(freedom, 1e4)
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return sqrt(freedom) * float(np.tan(np.interp(0.95, below / below[-1], angle)))


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa of two judges on the same answers: agreement beyond chance.

    None (undefined) without answers, or if both judges always give the same single label.
    """
    if not first:
        return None
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    by_chance = sum(first.count(label) * second.count(label) for label in set(first)) / len(first) ** 2
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
