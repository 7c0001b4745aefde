"""The curve of a model under the knob (dcr_ds/baselines/knob.py), from the refusal log-odds of the model without it.

The knob adds a constant c to the logits of the first tokens of refusal openings. With R the probability of the openings
and P that of their first tokens, so that O = P − R is that of other answers with the same first tokens,

    log-odds(c) = log R + c − log(1 − P + O eᶜ)

which is log-odds + c where O = 0, and never above log(R / O). The curve over all thresholds on the log-odds (curves.py)
is therefore that of the knob if O = 0, or of a constant on the log-odds of whole openings; no second model is needed.
"""

from collections.abc import Sequence

import numpy as np

from dcr_ds.discernment.measures import finite_scores, two_sets


def raised_log_odds(log_odds: np.ndarray, first_token: np.ndarray, strength: float) -> np.ndarray:
    """The log-odds [n] of a model under the knob.

    Args:
        log_odds, first_token: [n] of the model without it, as in log_odds.jsonl.
        strength: c.
    """
    log_odds, first_token = np.asarray(log_odds, dtype=float), np.asarray(first_token, dtype=float)
    log_r, log_p = -np.logaddexp(0, -log_odds), -np.logaddexp(0, -first_token)
    with np.errstate(divide="ignore"):  # no other answers: log 0
        log_others = log_p + np.log(-np.expm1(np.minimum(log_r - log_p, 0)))
    return log_r + strength - np.logaddexp(-np.logaddexp(0, first_token), log_others + strength)


def knob_curve(
    scores: np.ndarray, harmful: np.ndarray, strengths: Sequence[float], first_token: np.ndarray | None = None
) -> list[dict[str, float]]:
    """Strength, refusal of harmful and compliance with harmless prompts, at each constant.

    A prompt is refused if its score under the knob is at least 0.

    Args:
        scores: [n] log-odds or margins of the model without the knob.
        harmful: [n] of bool.
        first_token: [n] for log-odds; None adds the constant to the scores, as for margins, of which the knob moves
            only the first step.

    Raises:
        UserError: a set has no prompts, or a score is not finite.
    """
    (scores,), harmful, points = finite_scores(scores), two_sets(harmful), []
    for strength in strengths:
        raised = scores + strength if first_token is None else raised_log_odds(scores, first_token, strength)
        refused = raised >= 0
        rates = {"refusal": float(refused[harmful].mean()), "compliance": float(1 - refused[~harmful].mean())}
        points.append({"strength": strength, **rates})
    return points
