"""Which weights of stage 1 are the best, and whether the stage did what it is for. Pure functions of measured rows.

A row is what `measure` gives: "gap" and "auc" of held-out prompts at layer ℓ, "drift" of general conversations.
"""

from collections.abc import Mapping

AUC_TOLERANCE = 0.02  # a held-out AUC of some dozens of prompts moves by this much from step to step

Row = Mapping[str, float]


def failures(start: Row, row: Row, max_drift: float) -> list[str]:
    """Reasons why the weights of `row` must not pass for refined ones; none if they are sound.

    The comparisons are written so that NaN fails. An AUC that cannot be measured at the start is not compared.

    Args:
        max_drift: largest drift of general conversations, relative to the length of their activations.
    """
    reasons = []
    if not row["gap"] > start["gap"]:
        reasons.append(f"the held-out gap is not above its start ({row['gap']:.4f}, start {start['gap']:.4f})")
    if not row["drift"] <= max_drift:
        reasons.append(f"general conversations drifted beyond the bound ({row['drift']:.3f}, bound {max_drift:.3f})")
    if start["auc"] == start["auc"] and not row["auc"] >= start["auc"] - AUC_TOLERANCE:
        reasons.append(f"the held-out AUC is below its start ({row['auc']:.3f}, start {start['auc']:.3f})")
    return reasons


def better(candidate: Row, best: Row, start: Row, max_drift: float) -> bool:
    """Whether the weights of `candidate` replace `best`, which is the start itself before any replaced it.

    Sound weights win over weights with failures; among sound ones the larger gap wins. Drift and AUC are bounds and not
    terms of a sum: every useful refinement drifts, and a weight between them would have to be chosen per model. Weights
    with failures never replace any others, so that without a sound step the start stays the best.
    """
    return not failures(start, candidate, max_drift) and candidate["gap"] > best["gap"]


def out_of_patience(step: int, best_step: int, patience: int, min_steps: int) -> bool:
    """Whether to stop as no step has been better for `patience` steps; steps before `min_steps` do not count."""
    return step - max(best_step, min_steps) >= patience
