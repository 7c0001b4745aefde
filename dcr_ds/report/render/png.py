"""The figures as PNG files, for slides and papers; drawn by matplotlib, which is in the extra `eval`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcr_ds.report.numbers.alignment import RefusalCurve
from dcr_ds.report.numbers.tradeoff import ModelPoint, pareto_line
from dcr_ds.report.render.document import Table
from dcr_ds.report.render.figures import NUM_STYLES, colour, drawn_title, tradeoff_labels
from dcr_ds.report.render.tables import words

COLOURS = ("#4d4d4d", "#b34700", "#005fa3", "#00734f", "#9c3d78", "#7a5c00")  # as in the page's light theme
MARKERS, HATCHES = "os^DvP", ("", "//", "..", "xx", "\\\\", "--")
BAR_INCHES = 0.16
LEGEND_CHARACTERS = 72  # that fit into a row of a legend
ALIGNED = {"start": "left", "middle": "center", "end": "right"}


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def draw_tradeoff(points: Sequence[ModelPoint], file: Path) -> None:
    """Compliance against safety: the figure of the page."""
    drawing = _drawing(5, 5)
    axes = drawing.add_subplot()
    if front := [(100 * x, 100 * y) for x, y in pareto_line(points)]:
        axes.plot(*zip(*front, strict=True), "--", color="0.5", linewidth=1, zorder=1)
    for i, (point, place) in enumerate(zip(points, tradeoff_labels(points), strict=True)):
        style = {"fmt": MARKERS[i % NUM_STYLES], "color": COLOURS[colour(i)], "markersize": 8, "elinewidth": 1}
        reach = [_reach(point.x, point.x_interval), _reach(point.y, point.y_interval)]
        if point.curve:
            line = [(100 * x, 100 * y) for x, y in point.curve]
            axes.plot(*zip(*line, strict=True), color=COLOURS[colour(i)], linewidth=1.2, zorder=1)
        at = (100 * point.x, 100 * point.y)
        mark, *_ = axes.errorbar(*at, xerr=reach[0], yerr=reach[1], **style)
        mark.set_clip_on(False)  # drawn as a whole at the edge of the axes
        label = {"textcoords": "offset points", "ha": ALIGNED[place.anchor], "color": COLOURS[colour(i)]}
        axes.annotate(_literal(drawn_title(point.title)), at, (0.8 * place.dx, -0.8 * place.dy), **label)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set(xlabel="refusal of harmful prompts, % →", ylabel="compliance with harmless prompts, % →")
    axes.grid(alpha=0.3)
    _save(drawing, file)


def draw_curves(curves: Sequence[RefusalCurve], file: Path) -> None:
    """Refusal log-odds over the steps of alignment: a colour per category, the first of several models dashed."""
    categories = list(dict.fromkeys(curve.category for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    drawing = _drawing(6, 4.5)
    axes = drawing.add_subplot()
    axes.axhline(0, color="0.5", linewidth=1)
    for curve in curves:
        number = categories.index(curve.category)
        style = {"marker": MARKERS[number % NUM_STYLES], "color": COLOURS[number % 3 + 1], "markersize": 4}
        line = "--" if len(models) > 1 and curve.model == models[0] else "-"
        label = _literal(f"{drawn_title(curve.model)}, {words(curve.category)}")
        axes.plot(*zip(*curve.points, strict=True), line, label=label, **style)
    axes.set(xlabel="step of the alignment", ylabel="mean refusal log-odds")
    axes.grid(alpha=0.3)
    _legend(drawing, axes, 2)
    _save(drawing, file)


def draw_categories(table: Table, file: Path) -> None:
    """The rates of a benchmark by category: a bar per model, with different hatching."""
    rows = [row for _, group in table.groups for row in group]
    step = len(table.header) + 1  # bars of a category, and the gap to the next
    drawing = _drawing(7, BAR_INCHES * step * len(rows) + 1.2)
    axes = drawing.add_subplot()
    for i, title in enumerate(table.header):
        shares = [100 * (row.cells[i].share or 0) for row in rows]
        style = {"hatch": HATCHES[i % NUM_STYLES], "edgecolor": "white", "color": COLOURS[colour(i)]}
        axes.barh(
            [step * place + i for place in range(len(rows))],
            shares,
            height=0.9,
            label=_literal(drawn_title(title)),
            **style,
        )
    middle = (step - 2) / 2
    axes.set_yticks([step * place + middle for place in range(len(rows))], [_literal(row.name) for row in rows])
    axes.set(xlim=(0, 100), ylim=(step * len(rows) - 1, -1), title=_literal(table.caption))
    axes.grid(axis="x", alpha=0.3)
    _legend(drawing, axes, 4)
    _save(drawing, file)


def _drawing(width: float, height: float) -> Any:
    """An empty figure, its size in inches; without pyplot, so that no global state changes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _legend(drawing: Any, axes: Any, most_columns: int) -> None:
    """A legend below the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels)) + 6  # with its handle
    columns = max(1, min(most_columns, LEGEND_CHARACTERS // longest))
    drawing.legend(handles, labels, loc="outside lower center", ncols=columns)


def _save(drawing: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, metadata={"Software": None})


def _reach(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """The distances from a value to the ends of its interval, in percent, as errorbar expects them."""
    low, high = interval
    return [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]


def _literal(text: str) -> str:
    """Text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")
