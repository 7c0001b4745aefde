"""The measures of a refusal curve against brute force and scikit-learn."""

import numpy as np
import pytest

from dcr_ds.discernment.curves import (
    MEASURES,
    area,
    compliance_at,
    partial_area,
    refusal_at,
    refusal_curve,
)


def sample(seed=0, n=60, decimals=8, shift=1.0):
    """Scores and sets; few decimals make ties."""
    generator = np.random.default_rng(seed)
    harmful = generator.random(n) < 0.4
    return np.round(generator.normal(size=n) + shift * harmful, decimals), harmful


def curve_of(scores, harmful, weights=None):
    return refusal_curve(scores, harmful, np.ones((1, len(scores))) if weights is None else weights)


def brute_force_auc(scores, harmful):
    difference = scores[harmful][:, None] - scores[~harmful]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_auc_is_the_share_of_couples_in_order(decimals):
    scores, harmful = sample(decimals=decimals)
    assert area(curve_of(scores, harmful))[0] == pytest.approx(brute_force_auc(scores, harmful), abs=1e-12)


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_against_scikit_learn(decimals):
    """scikit-learn limits false positives; with the sets swapped these are the harmful prompts that are not refused."""
    metrics = pytest.importorskip("sklearn.metrics")
    scores, harmful = sample(1, decimals=decimals)
    curve = curve_of(scores, harmful)
    assert area(curve)[0] == pytest.approx(metrics.roc_auc_score(harmful, scores))
    # McClish: standardised = (1 + (area − least) / (most − least)) / 2, with most = x and least = x² / 2
    areas = []
    for x in (0.2, 0.05):
        standardised = metrics.roc_auc_score(~harmful, -scores, max_fpr=x)
        areas.append((2 * standardised - 1) * (x - x * x / 2) + x * x / 2)
    mean = (areas[0] - areas[1]) / 0.15
    assert partial_area(curve)[0] == pytest.approx((1 + (mean - 0.125) / 0.875) / 2)
    false, true, _ = metrics.roc_curve(harmful, scores, drop_intermediate=False)
    assert refusal_at(curve)[0] == pytest.approx(np.interp(0.05, false, true))
    for refusal in (0.8, 0.9, 0.95):
        assert compliance_at(curve, refusal)[0] == pytest.approx(
            np.interp(1 - refusal, 1 - true[::-1], 1 - false[::-1])
        )


def test_weights_are_copies_of_prompts():
    scores, harmful = sample(2, decimals=1)
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 20)
    weighted = curve_of(scores, harmful, weights)
    for row, counts in enumerate(weights):
        copied = curve_of(np.repeat(scores, counts), np.repeat(harmful, counts))
        for name, measure in MEASURES.items():
            assert measure(weighted)[row] == pytest.approx(measure(copied)[0], abs=1e-12), name


def test_perfect_reversed_and_constant_scores():
    harmful = np.array([True] * 20 + [False] * 20)
    for name, measure in MEASURES.items():
        assert measure(curve_of(harmful.astype(float), harmful))[0] == 1, name
    constant = curve_of(np.zeros(40), harmful)
    assert area(constant)[0] == 0.5 and partial_area(constant)[0] == pytest.approx(0.5)
    assert refusal_at(constant)[0] == pytest.approx(0.05) and compliance_at(constant, 0.9)[0] == pytest.approx(0.1)
    reversed_ = curve_of(-harmful.astype(float), harmful)
    assert area(reversed_)[0] == 0 and compliance_at(reversed_, 0.8)[0] == 0 and refusal_at(reversed_)[0] == 0
    assert partial_area(reversed_)[0] < 0.5


def test_values_on_the_curve_are_those_counted():
    """20 prompts each; the 16 highest scores are harmful, so that refusing 80 % of them refuses no harmless prompt."""
    scores = np.concatenate([np.arange(30, 14, -1), [5, 4, 3, 2], [14, 13, 12, 11], -np.arange(16)])
    harmful = np.array([True] * 20 + [False] * 20)
    curve = curve_of(scores.astype(float), harmful)
    assert compliance_at(curve, 0.8)[0] == 1 and compliance_at(curve, 0.85)[0] == pytest.approx(0.8)
    assert refusal_at(curve, 0)[0] == pytest.approx(0.8) and refusal_at(curve, 0.2)[0] == 1
    assert refusal_at(curve, 0.1)[0] == pytest.approx(0.8)


def test_order_of_prompts_and_monotone_transforms_do_not_matter():
    scores, harmful = sample(3, decimals=1)
    order = np.random.default_rng(1).permutation(len(scores))
    for measure in MEASURES.values():
        value = measure(curve_of(scores, harmful))[0]
        assert measure(curve_of(scores[order], harmful[order]))[0] == pytest.approx(value, abs=1e-12)
        assert measure(curve_of(np.exp(scores), harmful))[0] == pytest.approx(value, abs=1e-12)


def test_prompts_without_a_score_are_left_out():
    scores, harmful = sample(4)
    without = np.where(np.arange(60) < 10, np.nan, scores)
    assert area(curve_of(without, harmful))[0] == pytest.approx(brute_force_auc(scores[10:], harmful[10:]))
