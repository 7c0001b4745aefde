"""The retain term: the trunk's activations on general conversations stay near the original model's.

The frozen tail reads the output of block ℓ. Pushed by the contrastive loss alone, it drifts until the tail no longer
understands it and the model babbles. The original activations are computed once, before the first step, and kept on
the CPU, so that no second model is on the device.

Legend: B rows, T tokens of the longest, D width.
"""

from collections.abc import Sequence

import torch

from dcr_ds.engine.ranks import Ranks, sum_over_ranks
from dcr_ds.refine.embed import hidden_states, shards

Row = Sequence[int]


class Anchors:
    """Original hidden states of token rows, by row index; each rank keeps those of the rows it will be asked for."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def keep(self, engine, rows: Sequence[Row], indices: Sequence[int], device: torch.device) -> None:
        """Run one forward pass over rows[indices] and keep what is new. All ranks, equally often."""
        hidden, _ = hidden_states(engine, [rows[index] for index in indices], device)
        for index, state in zip(indices, hidden, strict=True):
            self.states.setdefault(index, state[: len(rows[index])].to("cpu", copy=True))

    def padded(self, indices: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """The kept states [B, T, D] of rows, zero-padded to the shape of `like`."""
        target = torch.zeros(like.shape, dtype=self.states[indices[0]].dtype)
        for position, index in enumerate(indices):
            target[position, : len(self.states[index])] = self.states[index]
        return target.to(like.device)


def relative_distance_squared(hidden: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """‖h − h₀‖² / ‖h₀‖² of every token [B, T], in float32.

    Relative a token: the first tokens of a sequence have norms a hundred times the others', which would otherwise
    be all the term sees.
    """
    original = original.float()
    return (hidden.float() - original).square().sum(-1) / original.square().sum(-1).clamp_min(1e-12)


def retain_loss(
    engine, rows: Sequence[Row], indices: Sequence[int], alive: Sequence[bool], anchors: Anchors, device: torch.device
) -> torch.Tensor:
    """The sum over the tokens of rows[indices] that are alive; the caller divides by the tokens of the step."""
    hidden, mask = hidden_states(engine, [rows[index] for index in indices], device)
    weight = mask * torch.tensor(alive, device=device)[:, None]
    return (relative_distance_squared(hidden, anchors.padded(indices, hidden)) * weight).sum()


@torch.no_grad()
def drift(engine, rows: Sequence[Row], anchors: Anchors, micro_batch: int, ranks: Ranks) -> float:
    """Mean over tokens of ‖h − h₀‖ / ‖h₀‖ on held-out general rows. All ranks."""
    total = torch.zeros(2, device=ranks.device)  # sum of distances, tokens
    for shard in shards(rows, micro_batch, ranks):
        indices, alive = zip(*shard, strict=True)
        hidden, mask = hidden_states(engine, [rows[index] for index in indices], ranks.device)
        weight = mask * torch.tensor(alive, device=ranks.device)[:, None]
        distance = relative_distance_squared(hidden, anchors.padded(indices, hidden)).sqrt()
        total += torch.stack([(distance * weight).sum(), weight.sum().float()])
    distance, tokens = sum_over_ranks(total, ranks).tolist()
    return distance / tokens
