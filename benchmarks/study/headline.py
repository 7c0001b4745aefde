"""The table of the study on the README's first screen: the main arms, and DCR less STL."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from analysis import PLAN, Readings, Study, difference, figures, outcomes, reading_that_agrees, t_interval

from dcr_ds.discernment.measures import Result
from dcr_ds.report.render.tables import markdown_table, number, percent, points, signed
from dcr_ds.statistics import seeds_interval

ARMS = {"base": "base", "stl": "STL", "equal-data": "equal data", "repair": "repaired STL", "dcr": "**DCR**"}
SETS = {"xstest": "XSTest", "or-bench": "OR-Bench"}
ATTACKS = {"prefill": "prefilled answer", "language": "other language", "role_play": "role play"}
Change = tuple[float | None, float | None, float | None]  # value, low, high


class Kind(NamedTuple):
    """How values of a row are written, and how their differences are."""

    value: Callable[[float | None], str]
    change: Callable[[float], str]


SHARE, NUMBER = Kind(percent, points), Kind(lambda value: number(value, 2), signed)


def headline(study: Study) -> str:
    """The table, over the seeds that STL and DCR both have; other arms with the seeds that they have."""
    seeds = {arm: study.seeds(arm) for arm in ARMS if study.seeds(arm)}
    seeds |= dict.fromkeys(("stl", "dcr"), study.common("stl", "dcr"))
    rows = [["", *(f"{ARMS[arm]}, {len(of_arm)}" for arm, of_arm in seeds.items()), "DCR less STL"]]
    for name in SETS:
        rows += rows_of_sets(study, name, seeds)
    for attack, name in ATTACKS.items():
        shares = {arm: of_seeds(study.attacks(arm).get(attack, {}), of_arm) for arm, of_arm in seeds.items()}
        rows.append(row_over_seeds(f"attack succeeds: {name} ↓", shares, SHARE))
    losses = {arm: {seed: study.loss(arm, seed) for seed in of_arm} for arm, of_arm in seeds.items()}
    rows.append(row_over_seeds("loss on general answers ↓", losses, NUMBER))
    return markdown_table(rows)


def rows_of_sets(study: Study, name: str, seeds: dict[str, list[int]]) -> list[list[str]]:
    """Judged answers and refusal scores of one pair of sets."""
    readings = {arm: study.readings(arm, PLAN.pairs[name]).of_seeds(of_arm) for arm, of_arm in seeds.items()}
    reading = reading_that_agrees(readings["stl"], readings["dcr"])
    scores = "log-odds" if reading == "log_odds" else "margins"
    measured = {arm: figures(of_arm, reading) for arm, of_arm in readings.items()}
    changed = difference(readings["dcr"], readings["stl"], reading)

    def of_measure(label: str, measure: str, kind: Kind) -> list[str]:
        values = [of_arm[measure]["value"] for of_arm in measured.values()]
        return row(f"{SETS[name]}: {label} ↑", values, change_of(changed[measure]), kind)

    return [
        row_of_answers(f"{SETS[name]}: harmless answered ↑", readings, 0),
        row_of_answers(f"{SETS[name]}: harmful refused ↑", readings, 1),
        of_measure("Youden's J of answers", "youden_j", NUMBER),
        of_measure(f"AUC of {scores}", "auc", NUMBER),
        of_measure(f"answered at 80% refusal, {scores}", "compliance_at_80_refusal", SHARE),
    ]


def row_of_answers(label: str, readings: dict[str, Readings], which: int) -> list[str]:
    wanted = {arm: outcomes(of_arm)[which] for arm, of_arm in readings.items()}
    means = {arm: float(of_arm.mean()) for arm, of_arm in wanted.items()}
    low, high = seeds_interval([wanted["dcr"]], [wanted["stl"]])
    return row(label, list(means.values()), (means["dcr"] - means["stl"], low, high), SHARE)


def row_over_seeds(label: str, values: dict[str, dict[int, float]], kind: Kind) -> list[str]:
    """A row of values by arm and seed, whose difference is paired by seed."""
    common = values["dcr"].keys() & values["stl"].keys()
    change = t_interval(np.array([values["dcr"][seed] - values["stl"][seed] for seed in sorted(common)]))
    means = [float(np.mean(list(of_arm.values()))) if of_arm else None for of_arm in values.values()]
    return row(label, means, change, kind)


def of_seeds(values: dict[int, float], seeds: list[int]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if seed in seeds}


def row(label: str, values: list[float | None], change: Change, kind: Kind) -> list[str]:
    value, low, high = change
    text = "–" if value is None else kind.change(value)
    interval = "" if low is None or high is None else f" ({kind.change(low)} to {kind.change(high)})"
    return [label, *map(kind.value, values), text + interval]


def change_of(result: Result) -> Change:
    return result["value"], result["low"], result["high"]
