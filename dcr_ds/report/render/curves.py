"""The drawing of refusal log-odds over the steps of alignment as SVG for the page, with its legend."""

import math
from collections.abc import Sequence

from dcr_ds.report.numbers.alignment import RefusalCurve
from dcr_ds.report.render.tables import signed, words
from dcr_ds.report.render.templating import render

WIDTH, PLOT_HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 42  # margins around the axes
LEGEND_ROW = 17
MAX_TICKS = 6


def curves_svg(curves: Sequence[RefusalCurve], name: str) -> str:
    """Curves with a colour and a shape per category; those of the first of several models are dashed.

    Args:
        name: prefix of the ids in the drawing, which must be unique in the page.
    """
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    x_ticks, y_ticks = ticks(0, max(steps), integers=True), ticks(min(0, *values), max(0, *values))
    right, bottom = WIDTH - RIGHT, PLOT_HEIGHT - BOTTOM

    def across(step: float) -> float:
        return LEFT + (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - LEFT)

    def down(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - TOP)

    categories = list(dict.fromkeys(curve.category for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    lines = [
        {
            "number": categories.index(curve.category),
            "dashed": len(models) > 1 and curve.model == models[0],
            "points": [(across(step), down(value)) for step, value in curve.points],
            "legend_y": PLOT_HEIGHT + LEGEND_ROW * (row + 0.5),
            "label": _label(curve),
        }
        for row, curve in enumerate(curves)
    ]
    return render(
        "curves.svg.jinja",
        name=name,
        lines=lines,
        x_ticks=[(f"{tick:g}", across(tick)) for tick in x_ticks],
        y_ticks=[(f"{tick:g}".replace("-", "−"), down(tick), tick == 0) for tick in y_ticks],
        box={"left": LEFT, "right": right, "top": TOP, "bottom": bottom, "width": WIDTH},
        height=PLOT_HEIGHT + LEGEND_ROW * len(curves) + 4,
    )


def ticks(low: float, high: float, integers: bool = False) -> list[float]:
    """Round numbers in even steps that enclose low and high; at least two.

    Args:
        integers: only whole numbers.
    """
    span = max(high - low, 1 if integers else 1e-6)
    size = 10.0 ** math.floor(math.log10(span / (MAX_TICKS - 1)))
    width = next(size * factor for factor in (1, 2, 5, 10, 20) if span / (size * factor) <= MAX_TICKS - 1)
    width = max(1.0, float(round(width))) if integers else width
    first, last = math.floor(low / width), math.ceil(high / width)
    return [width * number for number in range(first, max(last, first + 1) + 1)]


def _label(curve: RefusalCurve) -> str:
    """The curve in the legend, with its first and last value."""
    ends = list(dict.fromkeys((signed(curve.points[0][1], 1), signed(curve.points[-1][1], 1))))
    return f"{curve.model}, {words(curve.category)}: {' → '.join(ends)}"
