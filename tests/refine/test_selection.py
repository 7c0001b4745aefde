"""The best weights of stage 1, and the three kinds of failure."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_ds.refine.selection import better, failures, out_of_patience

MAX_DRIFT = 0.3
START = {"gap": 0.01, "auc": 0.7, "drift": 0.0}


def row(gap, auc=0.8, drift=0.1):
    return {"gap": gap, "auc": auc, "drift": drift}


ROWS = st.builds(row, st.floats(-1, 2), st.floats(0, 1), st.floats(0, 1))


def best_of(rows):
    return reduce(lambda best, candidate: candidate if better(candidate, best, START, MAX_DRIFT) else best, rows, START)


def test_the_widest_valid_gap_is_kept_and_not_the_last():
    rows = [row(0.2), row(0.5), row(0.4), row(0.9, drift=0.31), row(1.2, auc=0.5)]
    assert best_of(rows) == rows[1]


def test_without_a_valid_step_the_start_is_kept():
    assert best_of([row(0.005), row(0.5, drift=0.4), row(0.5, auc=0.6)]) == START


@pytest.mark.parametrize(
    ("final", "words"),
    [
        (row(-0.004), ["gap is not above its start (-0.0040, start 0.0100)"]),
        (row(0.01), ["gap is not above its start"]),
        (row(0.5, drift=0.4), ["drifted beyond the bound (0.400, bound 0.300)"]),
        (row(0.5, auc=0.64), ["AUC is below its start (0.640, start 0.700)"]),
        (row(float("nan"), float("nan"), float("nan")), ["gap", "drift", "AUC"]),
        (row(0.5), []),
        (row(0.5, auc=0.69), []),  # within the noise of so few prompts
    ],
)
def test_each_failure_is_reported(final, words):
    reasons = failures(START, final, MAX_DRIFT)
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_an_undefined_auc_is_not_compared():
    start = START | {"auc": float("nan")}
    assert failures(start, row(0.5, auc=float("nan")), MAX_DRIFT) == []


@given(st.lists(ROWS, max_size=12))
def test_the_best_step_is_valid_and_has_the_widest_gap(rows):
    best = best_of(rows)
    sound = [candidate for candidate in rows if not failures(START, candidate, MAX_DRIFT)]
    assert best in sound if sound else best is START
    assert all(candidate["gap"] <= best["gap"] for candidate in sound)


def test_patience_counts_after_min_steps():
    assert not out_of_patience(step=9, best_step=0, patience=5, min_steps=8)
    assert out_of_patience(step=13, best_step=0, patience=5, min_steps=8)
    assert not out_of_patience(step=13, best_step=10, patience=5, min_steps=8)
    assert out_of_patience(step=5, best_step=0, patience=5, min_steps=0)
