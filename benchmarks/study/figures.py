"""The pictures of docs/RESULTS.md: the fronts of the main arms, and the differences of all arms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from analysis import PLAN, Readings, Study, rates, reading_that_agrees

from dcr_ds.discernment.curves import compliance_at, refusal_curve

# Okabe and Ito's colours and different markers
STYLES = {
    "base": ("#777777", "P"),
    "stl": ("#D55E00", "o"),
    "dcr": ("#0072B2", "s"),
    "equal-data": ("#E69F00", "^"),
    "repair": ("#009E73", "D"),
}
# arms with weaker refusals, as hollow marks in the colour of the arm that they are made of
WEAKER = {"knob-down": "stl", "dcr-knob-down": "dcr"}
REFUSALS = np.linspace(0.02, 0.98, 49)
TITLES = {"xstest": "XSTest", "or-bench": "OR-Bench"}


class Bar(NamedTuple):
    """A row of the forest plot."""

    name: str
    value: float
    low: float | None
    high: float | None


def draw_fronts(study: Study, arms: Sequence[str], out: Path) -> None:
    """Compliance against refusal: lines from log-odds or margins, mean of the seeds; marks from the judged answers."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TITLES), figsize=(11, 5), layout="constrained")
    for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
        readings = {arm: study.readings(arm, PLAN.pairs[name]) for arm in arms}
        reading = reading_that_agrees(*(readings[arm] for arm in ("stl", "dcr")))
        panel.plot([0, 100], [100, 0], color="#CCCCCC", linewidth=1)
        for arm, of_arm in readings.items():
            draw_arm(panel, arm, of_arm, reading)
        for arm, of in WEAKER.items():
            if study.seeds(arm):
                draw_marks(panel, of, study.readings(arm, PLAN.pairs[name]), label=f"{of}, refusal logits −2")
        what = "log-odds" if reading == "log_odds" else "greedy margins"
        panel.set(xlim=(0, 100), ylim=(0, 100))
        panel.set_title(f"{title}\nlines: {what}, marks: judged answers", fontsize=11)
        panel.set_xlabel("harmful prompts refused (%)")
        panel.set_ylabel("harmless prompts answered (%)")
        panel.grid(color="#EEEEEE")
        panel.spines[["top", "right"]].set_visible(False)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
    save(figure, out)


def draw_arm(panel: Any, arm: str, readings: Readings, reading: str) -> None:
    """A line with its range over the seeds, and a mark per seed."""
    colour, _ = STYLES[arm]
    ones = np.ones((1, len(readings.harmful)))
    curves = [refusal_curve(scores, readings.harmful, ones) for scores in getattr(readings, reading)]
    lines = 100 * np.array([[compliance_at(curve, refusal)[0] for refusal in REFUSALS] for curve in curves])
    label = f"{arm} ({len(curves)} seeds)" if len(curves) > 1 else arm
    if arm == "stl":
        label += ", and the knob on whole openings"
    panel.plot(100 * REFUSALS, lines.mean(axis=0), color=colour, label=label)
    panel.fill_between(100 * REFUSALS, lines.min(axis=0), lines.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    if readings.is_answered:
        draw_marks(panel, arm, readings)


def draw_marks(panel: Any, arm: str, readings: Readings, label: str | None = None) -> None:
    """The judged answers of each seed; hollow marks with a label."""
    colour, marker = STYLES[arm]
    compliance, refusal = rates(readings)
    shape = {"marker": marker, "edgecolors": colour, "facecolors": "none" if label else colour, "s": 22, "zorder": 3}
    panel.scatter(100 * refusal, 100 * compliance, label=label, **shape)


def draw_forest(bars: Sequence[Bar], title: str, out: Path) -> None:
    """A difference with its interval per row, from the top."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(8, 0.9 + 0.28 * len(bars)), layout="constrained")
    for place, bar in enumerate(reversed(bars)):
        if bar.low is not None and bar.high is not None:
            panel.plot([bar.low, bar.high], [place, place], color="#0072B2", linewidth=1.5)
        panel.plot(bar.value, place, "o", color="#0072B2", markersize=4)
    panel.axvline(0, color="#777777", linewidth=0.8)
    panel.set_yticks(range(len(bars)), [bar.name for bar in reversed(bars)])
    panel.set_xlabel(title)
    panel.grid(axis="x", color="#EEEEEE")
    panel.spines[["top", "right", "left"]].set_visible(False)
    save(figure, out)


def save(figure: Any, out: Path) -> None:
    from matplotlib import pyplot

    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
