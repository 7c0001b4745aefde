"""The eNTK as a picture: all pairs of prompts, and the means per pair of categories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from dcr_ds.diagnose.entk.result import EntkResult


def draw(result: EntkResult, path: Path) -> None:
    """Draw the heat maps of pairs and of means, each with a colour scale of its own, as the means vary far less."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11.5, 5.4), dpi=150, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    image = draw_pairs(left, result)
    bar = figure.colorbar(image, ax=left, extend="max", shrink=0.84, pad=0.02)
    bar.set_label("‖K(x′, x)‖ / ‖K(x′, x′)‖")
    draw_means(right, result)
    figure.suptitle(
        f"eNTK of the {result.k} largest logits of the first answer token, parameters: {result.parameters}", wrap=True
    )

    figure.savefig(path)


def draw_pairs(axes: Axes, result: EntkResult) -> AxesImage:
    """All pairs; the scale ends at the 99th percentile of the pairs of different prompts."""
    others = result.ratios[~np.eye(len(result.ratios), dtype=bool)]
    image = axes.imshow(result.ratios, interpolation="nearest", vmin=0, vmax=float(np.quantile(others, 0.99)))
    bounds = np.cumsum([0, *result.counts.values()])
    for bound in bounds[1:-1]:
        axes.axhline(bound - 0.5, color="white", linewidth=1.2)
        axes.axvline(bound - 0.5, color="white", linewidth=1.2)
    label_axes(axes, result, (bounds[1:] + bounds[:-1] - 1) / 2)
    axes.set_title("all pairs of prompts", fontsize=11)
    return image


def draw_means(axes: Axes, result: EntkResult) -> None:
    """Means with their 95 % intervals, in black or white, whichever can be read on the colour."""
    largest = float(result.means.max())
    axes.imshow(result.means, vmin=0, vmax=largest)
    for row, column in np.ndindex(result.means.shape):
        mean, low, high = (values[row, column] for values in (result.means, result.low, result.high))
        colour = "black" if mean > 0.5 * largest else "white"
        axes.text(column, row - 0.08, f"{mean:.3f}", ha="center", va="center", color=colour, fontsize=14)
        interval = f"{low:.3f} to {high:.3f}"
        axes.text(column, row + 0.17, interval, ha="center", va="center", color=colour, fontsize=9)
    label_axes(axes, result, np.arange(len(result.counts)))
    axes.set_title("means and 95 % intervals, without x = x′", fontsize=11)


def label_axes(axes: Axes, result: EntkResult, places: np.ndarray) -> None:
    names = [f"{name.replace('_', ' ')}\n(n = {count})" for name, count in result.counts.items()]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names, rotation=90, va="center", ha="center")
    axes.tick_params(length=0, pad=6)
    axes.tick_params(axis="y", pad=14)
    axes.set_xlabel("x")
    axes.set_ylabel("x′")
