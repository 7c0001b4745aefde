"""How well a model distinguishes harmful from harmless prompts, independently of how often it refuses."""

from dcr_ds.discernment.agreement import AGREEMENT_BOUND, agreement, is_headline
from dcr_ds.discernment.curves import MEASURES
from dcr_ds.discernment.knob import knob_curve, raised_log_odds
from dcr_ds.discernment.measures import (
    discernment,
    discernment_difference,
    score_auc,
    score_auc_difference,
    youden_j,
    youden_j_difference,
)

__all__ = [
    "AGREEMENT_BOUND",
    "MEASURES",
    "agreement",
    "discernment",
    "discernment_difference",
    "is_headline",
    "knob_curve",
    "raised_log_odds",
    "score_auc",
    "score_auc_difference",
    "youden_j",
    "youden_j_difference",
]
