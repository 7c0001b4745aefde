"""Rates and their intervals."""

from math import sqrt

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) where nothing was observed.

    Unlike the normal approximation it stays within [0, 1] and has a width at 0 and at 1, where refusal rates
    of small benchmarks often lie.
    """
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At 0 and at n the bound is exactly 0 or 1; the formula misses it by rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return low, high


def rate(successes: int, total: int) -> dict[str, float | int | None]:
    """A proportion with its Wilson interval, as it is written to files."""
    low, high = wilson_interval(successes, total)
    return {"value": successes / total if total else None, "low": low, "high": high, "n": total}
