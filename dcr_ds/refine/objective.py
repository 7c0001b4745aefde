"""The contrastive loss of a recipe, by name; the losses themselves are in dcr_kernels."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from dcr_kernels import CircleLoss, ContrastiveLoss, InfoNCELoss, NTXentLoss, SupConLoss, TripletLoss

from dcr_ds.engine.batching import Batching, passes_of_ranks
from dcr_ds.engine.distributed import Ranks
from dcr_ds.recipe import RefineSection

LOSSES: dict[str, Callable[..., ContrastiveLoss]] = {
    "circle": lambda stage, **options: CircleLoss(stage.margin, stage.scale, stage.form, **options),
    "supcon": lambda stage, **options: SupConLoss(stage.temperature, **options),
    "infonce": lambda stage, **options: InfoNCELoss(stage.temperature, **options),
    "ntxent": lambda stage, **options: NTXentLoss(stage.temperature, **options),
    "triplet": lambda stage, **options: TripletLoss(stage.margin, **options),
}


def contrastive_loss(stage: RefineSection, group: Any) -> ContrastiveLoss:
    """The loss `refine.loss` with its options, over the rows of all ranks of `group`."""
    return LOSSES[stage.loss](stage, group=group, backend=stage.backend)


def gathered_positives(positives: Sequence[int], lengths: Sequence[int], ranks: Ranks, batching: Batching) -> list[int]:
    """For each row of this rank's share of a step the index of its positive in the gathered shares of all ranks.

    −1 for rows that are not alive.

    Args:
        positives: for each sample of the step the index of its positive among the samples.
        lengths: tokens of each sample.
    """
    samples = range(len(lengths))
    passes = passes_of_ranks(samples, lengths, range(ranks.world_size), ranks.world_size, batching)
    shares = [list(chain.from_iterable(of_rank)) for of_rank in passes]
    alive = [(index, row) for row, (index, is_alive) in enumerate(chain.from_iterable(shares)) if is_alive]
    gathered_row = dict(alive)
    return [gathered_row[positives[index]] if is_alive else -1 for index, is_alive in shares[ranks.rank]]
