"""The drawing of compliance against refusal as SVG for the page.

Colours come from CSS variables of the page, so that the drawing follows the theme; models also differ in shape, and are
labelled. Coordinates are in units of the viewBox, about one pixel on a phone.
"""

from collections.abc import Sequence

from dcr_ds.report.numbers.tradeoff import ModelPoint, pareto_line
from dcr_ds.report.render.templating import render

SIZE = 400  # width and height of the drawing
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 44  # margins around the axes
LABEL_HEIGHT = 15
NUM_STYLES = 6  # colours and shapes; a seventh model has the first shape in the second colour


def tradeoff_svg(points: Sequence[ModelPoint]) -> str:
    """Points with their intervals and curves, labelled so that no label covers another."""
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
