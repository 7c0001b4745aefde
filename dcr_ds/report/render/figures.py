"""The figure of compliance against safety: its points, its drawing as SVG for the page, and what it shows in words.

The SVG takes its colours from CSS variables of the page, so that it follows the theme; every model has a shape and a
label of its own beside its colour. Units of coordinates are those of the viewBox, about a pixel on a phone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.differences import mean_rate, pareto_front
from dcr_ds.report.numbers.discernment import GRID, Discernment
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.render.document import Figure
from dcr_ds.report.render.tables import percent
from dcr_ds.report.render.templating import render
from dcr_ds.statistics import Interval

SIZE = 400  # width and height of the drawing
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 44  # margins around the axes
LABEL_HEIGHT = 15
NUM_STYLES = 6  # colours and shapes; a seventh model takes the first shape in the second colour


@dataclass(frozen=True)
class ModelPoint:
    """A model's mean refusal of harmful prompts (x) and mean compliance with harmless ones (y), as shares."""

    title: str
    x: float
    y: float
    x_interval: Interval
    y_interval: Interval
    is_on_front: bool
    curve: Sequence[tuple[float, float]] = ()  # (x, y) at other amounts of refusal, from the log-odds


def tradeoff_points(
    columns: Sequence[Column], benchmarks: Sequence[Benchmark], discernment: Sequence[Discernment] = ()
) -> list[ModelPoint]:
    """One point per model that was measured on every benchmark of both kinds.

    With discernment, points and curves are those of the pair of sets with the most prompts.
    """
    entry = max(discernment, key=lambda entry: entry.n_harmless + entry.n_harmful, default=None)
    shown = [b for b in benchmarks if entry is None or b.name in (*entry.pair.harmless, *entry.pair.harmful)]
    harmful = [benchmark for benchmark in shown if benchmark.metric == "refusal_rate"]
    harmless = [benchmark for benchmark in shown if benchmark.metric == "compliance_rate"]
    found = [
        (column.title, x, y, _curve(entry, i))
        for i, column in enumerate(columns)
        if (x := mean_rate(harmful, i)) and (y := mean_rate(harmless, i))
    ]
    front = pareto_front([(x.value, y.value) for _, x, y, _ in found])
    return [
        ModelPoint(title, x.value, y.value, x.interval, y.interval, place in front, curve)
        for place, (title, x, y, curve) in enumerate(found)
    ]


def _curve(entry: Discernment | None, column: int) -> list[tuple[float, float]]:
    found = entry.columns[column] if entry else None
    if found is None or found.compliance is None:
        return []
    return [(float(x), float(y)) for x, y in zip(GRID, found.compliance, strict=True)]


def tradeoff_figure(points: Sequence[ModelPoint], png: str | None) -> Figure | None:
    """The figure, or None where there is no more than one point."""
    if len(points) < 2:
        return None
    described = "; ".join(
        f"{point.title} refuses {percent(point.x)} of harmful prompts, complies with {percent(point.y)} of harmless"
        for point in points
    )
    front = ", ".join(point.title for point in points if point.is_on_front)
    axes = "Compliance with harmless prompts against refusal of harmful ones"
    if any(point.curve for point in points):
        caption = (
            f"{axes}; up and to the right is better. A mark is a model's judged answers with 95% intervals; its line "
            "is what other amounts of refusal would give, from its refusal log-odds on the same prompts."
        )
        return Figure(caption, f"{described}.", _svg(points), png)
    caption = (
        f"{axes}, each the mean over benchmarks with its 95% interval; up and to the right is better. The dashed line "
        f"joins the Pareto front: models that no other beats in both ({front})."
    )
    return Figure(caption, f"{described}. On the Pareto front: {front}.", _svg(points), png)


def _svg(points: Sequence[ModelPoint]) -> str:
    front = pareto_line(points)
    marks = [
        {
            "title": point.title,
            "shape": i % NUM_STYLES,
            "colour": colour(i),
            "curve": _polyline(point.curve),
            "x": _across(point.x),
            "y": _down(point.y),
            "bar_x": [_across(value) for value in point.x_interval],
            "bar_y": [_down(value) for value in point.y_interval],
            "label_x": _across(point.x) + (-8 if is_labelled_below(point) else 8),
            "anchor": "end" if is_labelled_below(point) else "start",
        }
        for i, point in enumerate(points)
    ]
    heights = [_down(point.y) + (18 if is_labelled_below(point) else -9) for point in points]
    for mark, y in zip(marks, _spread(heights), strict=True):
        mark["label_y"] = y
    ticks = [
        {"label": f"{tick}", "x": _across(tick / 100), "y": _down(tick / 100)} for tick in (0, 20, 40, 60, 80, 100)
    ]
    box = {"left": LEFT, "right": SIZE - RIGHT, "top": TOP, "bottom": SIZE - BOTTOM, "size": SIZE}
    return render("tradeoff.svg.jinja", marks=marks, ticks=ticks, front=_polyline(front), box=box)


def pareto_line(points: Sequence[ModelPoint]) -> list[tuple[float, float]]:
    """The points of the Pareto front from left to right; empty where curves show more."""
    if any(point.curve for point in points):
        return []
    return sorted((point.x, point.y) for point in points if point.is_on_front)


def _polyline(line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_across(x):.1f},{_down(y):.1f}" for x, y in line)


def is_labelled_below(point: ModelPoint) -> bool:
    """Labels are above on the right or, where that has no room, below on the left: the front passes by neither."""
    return point.x > 0.55


def colour(place: int) -> int:
    """The colour of the model at a place; its shape is the place itself, in a circle."""
    return (place + place // NUM_STYLES) % NUM_STYLES


def _across(share: float) -> float:
    return LEFT + share * (SIZE - LEFT - RIGHT)


def _down(share: float) -> float:
    return SIZE - BOTTOM - share * (SIZE - TOP - BOTTOM)


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights of labels moved apart so that none covers another, from the top down, inside the axes."""
    placed = list(heights)
    last = float(TOP)
    for i in sorted(range(len(placed)), key=lambda i: placed[i]):
        placed[i] = last = max(placed[i], last + LABEL_HEIGHT)
    overflow = max([0.0, *(height - (SIZE - BOTTOM - 4) for height in placed)])
    return [height - overflow for height in placed]
