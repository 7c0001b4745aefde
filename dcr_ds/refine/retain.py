"""The retain term: the trunk's activations on general conversations stay near those of the original model.

The frozen tail reads the output of block ℓ. With the contrastive loss alone that output drifts until the tail no longer
reads it and the output degenerates. The original activations are computed once, before the first step, and kept on the
CPU, so that no second model is on the device.

Legend: N tokens of the rows of a forward pass, D width.
"""

from collections.abc import Sequence

import torch

from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.models.batches import to_device
from dcr_ds.refine.embed import Row, hidden_states, shards

Group = Sequence[tuple[int, bool]]  # the rows of a forward pass by index, and whether each is alive


class Anchors:
    """Original hidden states of token rows, by row index; each rank keeps only the rows it needs."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def keep(self, engine, rows: Sequence[Row], indices: Sequence[int], packed: bool, device: torch.device) -> None:
        """Run one forward pass over rows[indices] and keep the states of new rows. All ranks, equally often."""
        hidden, _ = hidden_states(engine, [rows[index] for index in indices], packed, device)
        lengths = [len(rows[index]) for index in indices]
        for index, state in zip(indices, hidden.to("cpu").split(lengths), strict=True):
            self.states.setdefault(index, state.clone())

    def of(self, indices: Sequence[int], device: torch.device) -> torch.Tensor:
        """The kept states of rows, row after row [N, D]."""
        return to_device(torch.cat([self.states[index] for index in indices]), device)


def relative_distance_squared(hidden: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """‖h − h₀‖² / ‖h₀‖² per token [N], in float32.

    Relative, since the first tokens of a sequence have norms a hundred times larger than the others and would dominate
    the term.
    """
    original = original.float()
    return (hidden.float() - original).square().sum(-1) / original.square().sum(-1).clamp_min(1e-12)


def retain_loss(
    engine, rows: Sequence[Row], group: Group, anchors: Anchors, packed: bool, device: torch.device
) -> torch.Tensor:
    """The sum over the tokens of a group's rows that are alive; the caller divides by the tokens of the step."""
    distance, weight = _distances(engine, rows, group, anchors, packed, device)
    return (distance * weight).sum()


@torch.no_grad()
def drift(engine, rows: Sequence[Row], anchors: Anchors, batching: Batching, ranks: Ranks) -> float:
    """Mean over tokens of ‖h − h₀‖ / ‖h₀‖ on held-out general rows. All ranks."""
    sums = torch.zeros(2, device=ranks.device)  # distances, tokens
    for group in shards(rows, batching, ranks):
        distance, weight = _distances(engine, rows, group, anchors, batching.packed, ranks.device)
        sums += torch.stack([(distance.sqrt() * weight).sum(), weight.sum()])
    distance, num_tokens = sum_over_ranks(sums, ranks).tolist()
    return distance / num_tokens


def _distances(
    engine, rows: Sequence[Row], group: Group, anchors: Anchors, packed: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The relative distance squared per token of a group's rows, and 1 where the row is alive, else 0 [N]."""
    hidden, _ = hidden_states(engine, [rows[index] for index, _ in group], packed, device)
    return distances_of(hidden, rows, group, anchors)


def distances_of(
    hidden: torch.Tensor, rows: Sequence[Row], group: Group, anchors: Anchors
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_distances`, from the hidden states of the tokens of a group's rows [N, D]."""
    indices, alive = zip(*group, strict=True)
    lengths = torch.tensor([len(rows[index]) for index in indices])
    weight = to_device(torch.tensor(alive, dtype=torch.float32).repeat_interleave(lengths), hidden.device)
    return relative_distance_squared(hidden, anchors.of(indices, hidden.device)), weight
