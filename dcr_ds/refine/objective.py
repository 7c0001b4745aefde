"""The contrastive loss of a recipe, by name; the losses themselves are dcr_kernels'."""

from collections.abc import Callable, Sequence
from typing import Any

from dcr_kernels import CircleLoss, ContrastiveLoss, InfoNCELoss, NTXentLoss, SupConLoss, TripletLoss

from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.recipe import RefineSection

LOSSES: dict[str, Callable[..., ContrastiveLoss]] = {
    "circle": lambda stage, **options: CircleLoss(stage.margin, stage.scale, stage.form, **options),
    "supcon": lambda stage, **options: SupConLoss(stage.temperature, **options),
    "infonce": lambda stage, **options: InfoNCELoss(stage.temperature, **options),
    "ntxent": lambda stage, **options: NTXentLoss(stage.temperature, **options),
    "triplet": lambda stage, **options: TripletLoss(stage.margin, **options),
}


def contrastive_loss(stage: RefineSection, group: Any) -> ContrastiveLoss:
    """`refine.loss` with its options, over the rows of all ranks of `group`."""
    return LOSSES[stage.loss](stage, group=group, backend=stage.backend)


def gathered_positives(
    sampler: ContrastiveSampler, step: int, lengths: Sequence[int], rank: int, world_size: int, batching: Batching
) -> list[int]:
    """For each row of this rank's share of a step the row of its positive, counted over the shares of all ranks.

    −1 for the dead copies that even out the shares.
    """
    samples = range(len(lengths))
    shares = [sum(forward_passes(samples, lengths, other, world_size, batching), []) for other in range(world_size)]
    alive = [(index, row) for row, (index, live) in enumerate(sum(shares, [])) if live]
    place = dict(alive)
    positives = sampler.positives(step)
    return [place[positives[index]] if live else -1 for index, live in shares[rank]]
