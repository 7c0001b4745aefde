"""The methods of stage 2, and the sections of those that train on preferences. docs/preferences.md has their losses."""

from typing import Literal

from pydantic import Field

from dcr_ds.recipe.fields import Section

Method = Literal["sft", "dpo", "kto", "orpo", "simpo"]
PAIRED = ("dpo", "orpo", "simpo")  # a sample is a pair of answers; of the others, one conversation
WITH_REFERENCE = ("dpo", "kto")  # their losses compare the model with the one that the stage starts from
PREFERENCE_TITLES = {"dpo": "DPO", "kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}  # of those on data.preferences


class DpoSection(Section):
    beta: float = Field(
        0.1, gt=0, description="β: strength of the KL penalty towards the reference model; about 5 for sigmoid_norm"
    )
    loss: Literal["sigmoid", "sigmoid_norm"] = Field(
        "sigmoid", description="DPO's, or of log-ratios divided by the answer's length (docs/preferences.md)"
    )


class KtoSection(Section):
    beta: float = Field(0.1, gt=0, description="β: strength of the KL penalty towards the reference model")
    desirable_weight: float = Field(1.0, gt=0, description="λ_D: weight of the loss of desirable answers")
    undesirable_weight: float = Field(1.0, gt=0, description="λ_U: weight of the loss of undesirable answers")


class OrpoSection(Section):
    weight: float = Field(0.1, ge=0, description="λ: weight of the odds ratio next to the SFT loss")


class SimpoSection(Section):
    beta: float = Field(2.0, gt=0, description="β: scale of the length-averaged log-probabilities")
    gamma: float = Field(1.0, ge=0, description="γ: margin by which the chosen answer should win")
