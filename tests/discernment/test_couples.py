"""AUC over couples equals its definition; folds and intervals keep pairs together."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr_ds.discernment.couples import auc_interval, class_mean_auc, pair_folds
from dcr_ds.discernment.curves import area, refusal_curve


def auc(scores, labels):
    return area(refusal_curve(scores, labels == 1, np.ones((1, len(scores)))))[0]


def brute_force(h, labels, pairs):
    """The definition: new class means for each couple."""
    unit = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    wins, couples = 0.0, 0
    for i in np.flatnonzero(labels == 0):
        for j in np.flatnonzero(labels == 1):
            others = (pairs != pairs[i]) & (pairs != pairs[j])
            first, second = unit[others & (labels == 0)], unit[others & (labels == 1)]
            if len(first) and len(second):
                score = (second.mean(0) - first.mean(0)) @ (unit[j] - unit[i])
                wins += float(score > 1e-12) + 0.5 * float(abs(score) <= 1e-12)
                couples += 1
    return wins / couples if couples else float("nan")


def random_sets(n, width, num_pairs, seed, shift=0.3):
    """Random prompts of both labels in random pairs, several of one label in some of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    h = rng.standard_normal((n, width)) + 2.0
    h[:, 0] += shift * labels
    return h, labels, rng.integers(-5, num_pairs - 5, n)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_pairs", [1, 2, 3, 8, 30, 1000])
def test_class_mean_auc_equals_its_definition(seed, num_pairs):
    h, labels, pairs = random_sets(30, 5, num_pairs, seed)
    assert class_mean_auc(h, labels, pairs) == pytest.approx(brute_force(h, labels, pairs), abs=1e-15, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=20))
def test_class_mean_auc_with_ties_and_pairs_of_any_composition(prompts):
    """With vectors on the axes scores are sums of a few fractions, and many of them are zero."""
    axes, labels, pairs = (np.array(column) for column in zip(*prompts, strict=True))
    h = np.eye(4)[axes] * (1 + axes[:, None])
    assert class_mean_auc(h, labels, pairs) == pytest.approx(brute_force(h, labels, pairs), abs=1e-15, nan_ok=True)


def test_class_mean_auc_of_twins_and_single_prompts():
    h, _, _ = random_sets(20, 4, 9, seed=1)
    labels, pairs = np.array([0, 1] * 10), np.array([*np.arange(6).repeat(2), *range(10, 18)])
    assert class_mean_auc(h, labels, pairs) == brute_force(h, labels, pairs)


def test_nearly_equal_prompts_are_still_ranked():
    """Hidden states of a collapsed model differ by a millionth, so that their Gram matrix is 1 to twelve digits."""
    h, labels, pairs = random_sets(40, 6, 1000, seed=0)
    close = np.ones(6) + 1e-7 * h
    unit = close / np.linalg.norm(close, axis=1, keepdims=True)
    magnified = (unit - unit[0]) * 1e6  # the same geometry, with scores far above the threshold for ties
    wins = []
    for i in np.flatnonzero(labels == 0):
        for j in np.flatnonzero(labels == 1):
            others = (pairs != pairs[i]) & (pairs != pairs[j])
            means = [magnified[others & (labels == label)].mean(0) for label in (0, 1)]
            wins.append((means[1] - means[0]) @ (magnified[j] - magnified[i]) > 0)
    assert class_mean_auc(close, labels, pairs) == pytest.approx(np.mean(wins), abs=1e-15)


def test_other_labels_are_ignored():
    h, labels, pairs = random_sets(30, 5, 12, seed=2)
    more = np.concatenate([labels, [-1, 2]])
    extended = class_mean_auc(np.concatenate([h, h[:2]]), more, np.concatenate([pairs, [50, 51]]))
    assert extended == class_mean_auc(h, labels, pairs)


@pytest.mark.parametrize("pairs", [np.arange(1500), np.arange(750).repeat(2)], ids=["single prompts", "twins"])
def test_750_prompts_of_each_set_take_less_than_a_second(pairs):
    h = np.random.default_rng(0).standard_normal((1500, 8192), dtype=np.float32)
    labels = np.array([0, 1] * 750)
    started = time.thread_time()  # of this thread only, whatever else runs on the machine
    assert class_mean_auc(h, labels, pairs) == pytest.approx(0.5, abs=0.1)
    assert time.thread_time() - started < 1


def test_interval_includes_the_auc_and_covers_its_true_value():
    rng = np.random.default_rng(0)
    labels, truth = np.array([0, 1] * 40), 0.7602  # of unit normal scores one standard deviation apart
    covered = 0
    for _ in range(60):
        scores = rng.standard_normal(80) + labels
        interval = auc_interval(scores, labels, np.arange(80))
        assert interval.value == pytest.approx(auc(scores, labels), abs=1e-12)
        assert interval.low < interval.value < interval.high
        covered += interval.low <= truth <= interval.high
    assert covered >= 51  # of 60 at 95 %: fewer have probability 0.3 %


def test_twins_are_resampled_together():
    """If each prompt scores just above its twin, resampling topics changes little, so that the interval is narrow."""
    rng = np.random.default_rng(1)
    labels, pairs = np.array([0, 1] * 30), np.arange(30).repeat(2)
    scores = rng.standard_normal(30).repeat(2) + 0.01 * labels
    assert auc_interval(scores, labels, pairs).error < 0.5 * auc_interval(scores, labels, np.arange(60)).error


def test_scores_of_different_folds_are_not_compared():
    labels, folds = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    scores = np.array([0.0, 1.0, 10.0, 11.0])
    assert auc_interval(scores, labels, np.arange(4), folds).value == 1.0
    assert auc(scores, labels) == 0.75


@given(st.integers(2, 6), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_folds_keep_pairs_together_and_spread_both_labels(num_folds, single_0, single_1, twins):
    labels = np.array([0] * single_0 + [1] * single_1 + [0, 1] * twins)
    pairs = np.array([*range(single_0 + single_1), *(100 + np.arange(twins)).repeat(2)])
    folds = pair_folds(labels, pairs, num_folds)
    for pair in set(pairs):
        assert len(set(folds[pairs == pair])) == 1
    for label in (0, 1):
        counts = np.bincount(folds[labels == label], minlength=num_folds)
        assert counts.max() - counts.min() <= 2
