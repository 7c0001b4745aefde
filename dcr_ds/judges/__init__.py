"""Judges label answers: refusal or compliance, harmful or harmless. docs/judges.md says which to trust when."""

from dcr_ds.judges.base import Answer, Judge, Verdict, verdicts
from dcr_ds.judges.last_turn import LastTurnJudge
from dcr_ds.judges.rules.judge import rules_judge
from dcr_ds.judges.strings import string_judge
from dcr_ds.label_agreement import HARM_LABELS, REFUSAL_LABELS
from dcr_ds.recipe import GuardJudge, LlmJudge

__all__ = ["HARM_LABELS", "REFUSAL_LABELS", "Answer", "Judge", "Verdict", "load_judge", "verdicts"]


def load_judge(declared: str | LlmJudge | GuardJudge) -> Judge:
    """Load the judge that a recipe names or declares; only guards load torch and a model.

    Raises:
        UserError: unknown judge, or its endpoint, key or model is not available.
    """
    if isinstance(declared, LlmJudge):
        from dcr_ds.judges.llm import load_llm_judge

        return load_llm_judge(declared)
    if isinstance(declared, GuardJudge):
        from dcr_ds.judges.guard import load_guard_judge

        return load_guard_judge(declared)
    return LastTurnJudge(rules_judge()) if declared == "rules" else string_judge(declared)
