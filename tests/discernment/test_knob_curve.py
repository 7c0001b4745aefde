"""The knob's curve from log-odds; tests/baselines/test_knob.py compares `raised_log_odds` with the hook."""

import numpy as np
import pytest

from dcr_ds.discernment import knob_curve, raised_log_odds
from dcr_ds.errors import UserError

GENERATOR = np.random.default_rng(0)
HARMFUL = np.arange(40) % 2 == 0
LOG_ODDS = GENERATOR.normal(size=40) + HARMFUL
FIRST = LOG_ODDS + GENERATOR.exponential(size=40)


def test_thresholds_give_the_same_curve_where_no_other_answer_begins_alike():
    points = knob_curve(LOG_ODDS, HARMFUL, -LOG_ODDS)
    for threshold, point in zip(LOG_ODDS, points, strict=True):
        refused = threshold <= LOG_ODDS
        assert point["refusal"] == pytest.approx(refused[HARMFUL].mean())
        assert point["compliance"] == pytest.approx(1 - refused[~HARMFUL].mean())
    assert raised_log_odds(LOG_ODDS, LOG_ODDS, 1.25) == pytest.approx(LOG_ODDS + 1.25)


def test_any_kind_of_numbers_gives_the_same_curve():
    """Labels of 0 and 1 are not indices."""
    expected = knob_curve(LOG_ODDS, HARMFUL, [-1, 1], FIRST)
    assert knob_curve(LOG_ODDS.tolist(), HARMFUL.astype(int), [-1, 1], FIRST.tolist()) == expected
    with pytest.raises(UserError, match="no harmless prompts"):
        knob_curve(LOG_ODDS, [1] * 40, [0])
    with pytest.raises(UserError, match="1 of 40 scores are not finite"):
        knob_curve([np.nan, *LOG_ODDS[1:]], HARMFUL, [0])


def test_other_answers_with_the_same_first_tokens_bound_the_log_odds():
    refusals, first = 1 / (1 + np.exp(-LOG_ODDS)), 1 / (1 + np.exp(-FIRST))
    before = LOG_ODDS
    for strength in (-2.0, 0.0, 3.0, 50.0):
        raised = raised_log_odds(LOG_ODDS, FIRST, strength)
        odds = refusals * np.exp(strength) / (1 - first + (first - refusals) * np.exp(strength))
        assert raised == pytest.approx(np.log(odds))
        assert (raised >= before - 1e-12).all() or strength < 0
        before = raised if strength >= 0 else before
    assert before == pytest.approx(np.log(refusals / (first - refusals)))
    shares = [point["refusal"] for point in knob_curve(LOG_ODDS, HARMFUL, [-50, -1, 0, 1, 50], FIRST)]
    assert shares == sorted(shares) and shares[0] == 0
