"""Held-out prompts before and after refine on the same two axes, as coordinates and as a picture.

Legend: n prompts, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dcr_ds.errors import UserError

SETS = (("seemingly toxic", "#005fa3", "o"), ("toxic", "#b34700", "^"))  # colours of the report's figures
MARGIN = 0.06  # around the points, as a share of the range


@dataclass(frozen=True)
class Projection:
    """Coordinates [n, 2] of the prompts before and after, and the shares of variance that the two axes explain.

    explained: [2] share of each axis of the variance of both together; explained_before and explained_after: share of
    both axes of the variance within each.
    """

    before: np.ndarray
    after: np.ndarray
    explained: np.ndarray
    explained_before: float
    explained_after: float


def project(before: np.ndarray, after: np.ndarray) -> Projection:
    """Project the states [n, D] of the same prompts before and after onto two shared axes.

    The axes are fitted on both together: axes of the untrained states alone would hide the direction that refine adds,
    axes of the refined ones what it took away. Only directions count, as in the contrastive loss, so all states are
    scaled to length 1 first. The sign of an axis is chosen such that its largest weight is positive.

    Raises:
        UserError: fewer than 3 prompts, or states that are not finite.
    """
    if len(before) < 3:
        raise UserError(f"PCA: {len(before)} held-out prompts; it needs at least 3")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise UserError("PCA: hidden states are not finite; load the model in float32")
    states = np.concatenate([before, after]).astype(np.float64)
    states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    states -= states.mean(axis=0)
    _, lengths, axes = np.linalg.svd(states, full_matrices=False)
    axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None]
    coordinates = states @ axes.T
    total = max(np.sum(lengths**2), 1e-30)
    parts = (slice(len(before)), slice(len(before), None))
    within = [coordinates[part].var(axis=0).sum() / max(states[part].var(axis=0).sum(), 1e-30) for part in parts]
    before_refine, after_refine = (coordinates[part] for part in parts)
    return Projection(before_refine, after_refine, lengths[:2] ** 2 / total, float(within[0]), float(within[1]))


def draw_pca(projection: Projection, labels: np.ndarray, file: Path, titles: Sequence[str]) -> None:
    """Draw two panels with the same axes: before and after, coloured by set.

    Args:
        labels: [n], 0 seemingly toxic, 1 toxic.
        titles: of the panels.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("PCA: the picture needs matplotlib; install the extra: pip install 'dcr-ds[eval]'")
    # drawn without pyplot, whose state belongs to the caller
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, 2, sharex=True, sharey=True)
    limits = _square(np.concatenate([projection.before, projection.after]))
    parts = (
        (projection.before, projection.explained_before),
        (projection.after, projection.explained_after),
    )
    for panel, title, (points, explained) in zip(panels, titles, parts, strict=True):
        for label, (name, colour, marker) in enumerate(SETS):
            chosen = points[labels == label]
            panel.scatter(*chosen.T, s=22, c=colour, marker=marker, alpha=0.65, linewidths=0, label=name)
        panel.set_title(f"{title} (axes explain {explained:.0%} of its variance)", fontsize=10)
        panel.set_xlabel(f"axis 1 ({projection.explained[0]:.0%} of both)")
        panel.set(xlim=limits[0], ylim=limits[1], aspect="equal")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"axis 2 ({projection.explained[1]:.0%} of both)")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, metadata={"Software": None})


def _square(points: np.ndarray) -> list[tuple[float, float]]:
    """Limits of both axes of the same extent, so that distances along both look the same."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = max((high - low).max(), 1e-6) * (0.5 + MARGIN)
    return [(middle - half, middle + half) for middle in (low + high) / 2]
