"""The ablations of DCR: their differences on the development sets, and which recipe becomes the default."""

from typing import NamedTuple

from analysis import PLAN, Study, difference
from arms import read_arms

from dcr_ds.discernment.measures import Result
from dcr_ds.statistics import holm

DEVELOPMENT = {"jailbreakbench": "JailbreakBench", "coconot-harmbench": "CoCoNot, HarmBench val"}
LEVEL = 0.05


class Ablation(NamedTuple):
    """An ablation less DCR at the same seeds: AUC of the log-odds by development pair."""

    name: str
    num_seeds: int
    results: list[Result]
    p_holm: list[float]

    @property
    def mean(self) -> float:
        return sum(result["value"] or 0.0 for result in self.results) / len(self.results)

    @property
    def is_better(self) -> bool:
        """By the rule of docs/STUDY.md."""
        return all((result["value"] or 0.0) > 0 for result in self.results) and min(self.p_holm) < LEVEL


def compared(study: Study, arms: list[str]) -> list[Ablation]:
    """The ablations of these names, with p-values after Holm's correction over all of them and both pairs.

    Those without a seed that DCR has are left out.
    """
    arms = [arm for arm in arms if study.common(arm, "dcr")]
    dcr = {pair: study.readings("dcr", PLAN.pairs[pair]) for pair in DEVELOPMENT}
    results = [
        [difference(study.readings(arm, PLAN.pairs[pair]), of_dcr, "log_odds")["auc"] for pair, of_dcr in dcr.items()]
        for arm in arms
    ]
    corrected = iter(holm([float(result["p"] or 1.0) for of_arm in results for result in of_arm]))
    return [
        Ablation(arm, len(study.common(arm, "dcr")), of_arm, [next(corrected) for _ in of_arm])
        for arm, of_arm in zip(arms, results, strict=True)
    ]


def default_recipe(study: Study, ablations: list[Ablation]) -> str:
    """The rule of docs/STUDY.md in one sentence."""
    planned = {name: arm.seeds for name, arm in read_arms().items() if arm.group == "ablation"}
    if unfinished := [name for name, seeds in planned.items() if len(study.seeds(name)) < seeds]:
        return f"{len(unfinished)} of {len(planned)} ablations lack seeds, so that the default is not decided yet."
    better = [ablation for ablation in ablations if ablation.is_better]
    if not better:
        return "By the rule of the protocol no ablation is better than DCR: the default stays."
    best = max(better, key=lambda ablation: ablation.mean)
    return f"By the rule of the protocol, {best.name} becomes the default."
