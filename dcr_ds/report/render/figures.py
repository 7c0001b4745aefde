"""The drawing of compliance against refusal as SVG for the page.

Colours come from CSS variables of the page, so that the drawing follows the theme; models also differ in shape, and are
labelled. Coordinates are in units of the viewBox, about one pixel on a phone.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dcr_ds.report.numbers.tradeoff import ModelPoint, pareto_line
from dcr_ds.report.render.labels import Box, Label, place_labels
from dcr_ds.report.render.tables import cut_middle
from dcr_ds.report.render.templating import render

SIZE = 400  # width and height of the drawing
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 44  # margins around the axes
MAX_TITLE = 36  # characters of a model's name in a drawing; names of folders may be longer than it is wide
NUM_STYLES = 6  # colours and shapes; a seventh model has the first shape in the second colour


def tradeoff_svg(points: Sequence[ModelPoint]) -> str:
    """Points with their intervals and curves, each with a label."""
    marks = [
        {
            "title": drawn_title(point.title),
            "shape": i % NUM_STYLES,
            "colour": colour(i),
            "curve": _polyline(point.curve),
            "x": _across(point.x),
            "y": _down(point.y),
            "bar_x": [_across(value) for value in point.x_interval],
            "bar_y": [_down(value) for value in point.y_interval],
            "label_x": _across(point.x) + label.dx,
            "label_y": _down(point.y) + label.dy,
            "anchor": label.anchor,
        }
        for i, (point, label) in enumerate(zip(points, tradeoff_labels(points), strict=True))
    ]
    ticks = [
        {"label": f"{tick}", "x": _across(tick / 100), "y": _down(tick / 100)} for tick in (0, 20, 40, 60, 80, 100)
    ]
    box = {"left": LEFT, "right": SIZE - RIGHT, "top": TOP, "bottom": SIZE - BOTTOM, "size": SIZE}
    return render("tradeoff.svg.jinja", marks=marks, ticks=ticks, front=_polyline(pareto_line(points)), box=box)


def tradeoff_labels(points: Sequence[ModelPoint]) -> list[Label]:
    """The positions of the titles of the points, in units of the drawing."""
    shares = [line for point in points for line in _lines(point)]
    ink = [(_across(x), _down(y)) for line in shares for x, y in _spaced(line)]
    at = [((_across(point.x), _down(point.y)), drawn_title(point.title)) for point in points]
    return place_labels(at, ink, Box(LEFT, TOP, SIZE - RIGHT, SIZE - BOTTOM))


def drawn_title(title: str) -> str:
    """The name of a model as a drawing shows it."""
    return cut_middle(title, MAX_TITLE)


def _lines(point: ModelPoint) -> list[Sequence[tuple[float, float]]]:
    """The curve and both intervals of a point."""
    (left, right), (low, high) = point.x_interval, point.y_interval
    return [point.curve, [(left, point.y), (right, point.y)], [(point.x, low), (point.x, high)]]


def _spaced(line: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points on a polyline, spaced by about 1 % of the axes."""
    for (x, y), (next_x, next_y) in pairwise(line):
        number = max(1, round(100 * math.hypot(next_x - x, next_y - y)))
        for i in range(number):
            yield x + (next_x - x) * i / number, y + (next_y - y) * i / number


def _polyline(line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_across(x):.1f},{_down(y):.1f}" for x, y in line)


def colour(place: int) -> int:
    """The colour of the model at an index; the shape repeats with the index, the colours shift with each repetition."""
    return (place + place // NUM_STYLES) % NUM_STYLES


def _across(share: float) -> float:
    return LEFT + share * (SIZE - LEFT - RIGHT)


def _down(share: float) -> float:
    return SIZE - BOTTOM - share * (SIZE - TOP - BOTTOM)
