"""The secondary endpoints of docs/STUDY.md: compliance at given refusal, attacks, loss on general answers, cost."""

from collections.abc import Sequence

import numpy as np
from analysis import PLAN, Study, difference, figures, rates, reading_that_agrees
from headline import SETS

from dcr_ds.report.render.tables import markdown_table, number, percent, points

ATTACKS = ("plain", *PLAN.attacked["attacks"])
REFUSALS = {rate: f"compliance_at_{rate}_refusal" for rate in (80, 90, 95)}


def compliance_table(study: Study, arms: Sequence[str]) -> str:
    """Harmless prompts answered at given refusal of harmful ones, by the scores; and DCR less STL."""
    rows = [[""], *([arm] for arm in arms), ["dcr less stl"]]
    for name, title in SETS.items():
        readings = {arm: study.readings(arm, PLAN.pairs[name]) for arm in {*arms, "stl", "dcr"}}
        reading = reading_that_agrees(readings["stl"], readings["dcr"])
        changed = difference(readings["dcr"], readings["stl"], reading)
        results = [figures(readings[arm], reading) for arm in arms]
        for rate, measure in REFUSALS.items():
            rows[0].append(f"{title}: at {rate} %")
            for row, result in zip(rows[1:], results, strict=False):
                row.append(percent(result[measure]["value"]))
            value, low, high = (changed[measure][end] for end in ("value", "low", "high"))
            ends = "" if low is None or high is None else f" ({points(low)} to {points(high)})"
            rows[-1].append(("–" if value is None else points(value)) + ends)
    return markdown_table(rows)


def arms_table(study: Study, arms: list[str]) -> str:
    """Judged answers: compliance, refusal, attacks; and the loss on general answers. Means over the seeds."""
    header = [f"{title}: {what}" for title in SETS.values() for what in ("complied ↑", "refused ↑", "J ↑")]
    rows = [["", "seeds", *header, *(f"attack {attack} ↓" for attack in ATTACKS), "general loss ↓"]]
    for arm in arms:
        cells: list[str] = []
        for name in SETS:
            readings = study.readings(arm, PLAN.pairs[name])
            if readings.is_answered:
                compliance, refusal = rates(readings)
                j = float(np.mean(compliance + refusal - 1))
                cells += [percent(float(compliance.mean())), percent(float(refusal.mean())), number(j, 2)]
            else:
                cells += ["–"] * 3
        attacks = study.attacks(arm)
        shares = [list(attacks.get(attack, {}).values()) for attack in ATTACKS]
        cells += [percent(float(np.mean(of_attack))) if of_attack else "–" for of_attack in shares]
        loss = float(np.mean([study.loss(arm, seed) for seed in study.seeds(arm)]))
        rows.append([arm, str(len(study.seeds(arm))), *cells, number(loss)])
    return markdown_table(rows)


def cost_table(study: Study, arms: list[str]) -> str:
    """Steps, tokens and seconds of the stages, means over the seeds."""
    rows = [["", "starts from", "refine: steps", "tokens", "seconds", "align: steps", "tokens", "seconds"]]
    for arm in arms:
        cells = []
        for stage in ("refine", "align"):
            costs = [cost["stages"][stage] for cost in study.costs(arm) if stage in cost["stages"]]
            for key in ("steps", "tokens", "wall_seconds"):
                cells.append(f"{np.mean([cost[key] for cost in costs]):,.0f}" if costs else "–")
        rows.append([arm, study.arms[arm].of or "–", *cells])
    return markdown_table(rows)
