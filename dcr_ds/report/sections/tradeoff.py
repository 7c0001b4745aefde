"""The figure of compliance against refusal, with what it shows in words."""

from collections.abc import Sequence

from dcr_ds.report.numbers.tradeoff import ModelPoint
from dcr_ds.report.render.document import Figure
from dcr_ds.report.render.figures import tradeoff_svg
from dcr_ds.report.render.tables import percent

TRADEOFF = "tradeoff"  # name of the figure


def tradeoff_figure(points: Sequence[ModelPoint], png: str | None) -> Figure | None:
    """The figure, or None with fewer than two points."""
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
        return Figure(TRADEOFF, caption, f"{described}.", tradeoff_svg(points), png)
    caption = (
        f"{axes}, each the mean over benchmarks with its 95% interval; up and to the right is better. The dashed line "
        f"joins the Pareto front: models that no other beats in both ({front})."
    )
    return Figure(TRADEOFF, caption, f"{described}. On the Pareto front: {front}.", tradeoff_svg(points), png)
