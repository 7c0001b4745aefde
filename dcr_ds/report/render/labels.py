"""Positions of the labels of points that overlap neither marks, intervals and curves nor each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CHARACTER, HEIGHT = 7.6, 14  # of the text, about
MARK = 9  # half the size of a mark, with a margin
Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def contains(self, point: Point) -> bool:
        return self.left <= point[0] <= self.right and self.top <= point[1] <= self.bottom


@dataclass(frozen=True)
class Label:
    """A label relative to its point: offsets to the baseline of the text, y downwards."""

    dx: float
    dy: float
    anchor: Anchor

    def box(self, at: Point, text: str) -> Box:
        width = CHARACTER * len(text)
        left = at[0] + self.dx - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, at[1] + self.dy - HEIGHT + 3, left + width, at[1] + self.dy + 3)


ROWS = sorted((*range(-9, -135, -15), *range(18, 138, 15)), key=abs)  # baselines above and below the point
SIDES: tuple[tuple[int, Anchor], ...] = ((1, "start"), (-1, "end"))
CANDIDATES = [
    *(Label(side * 9, dy, anchor) for dy in ROWS for side, anchor in SIDES),
    *(Label(0, dy, "middle") for dy in (-13, 23)),
]


def place_labels(points: Sequence[tuple[Point, str]], ink: Iterable[Point], frame: Box) -> list[Label]:
    """Choose a position for the text of every point inside the frame, in the given order.

    Args:
        points: position and text.
        ink: evenly spaced points on curves and intervals, which labels should avoid.
    """
    marks = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for (x, y), _ in points]
    ink = list(ink)
    occupied: list[Box] = []
    labels: list[Label] = []
    for at, text in points:

        def cost(label: Label, at: Point = at, text: str = text) -> float:
            box = label.box(at, text)
            outside = (box.right - box.left) * (box.bottom - box.top) - box.overlap(frame)
            covered = sum(box.overlap(other) for other in (*marks, *occupied))
            distance = abs(label.dy)
            return 10 * outside + 5 * covered + 10 * sum(box.contains(point) for point in ink) + distance

        best = min(CANDIDATES, key=cost)
        occupied.append(best.box(at, text))
        labels.append(best)
    return labels
