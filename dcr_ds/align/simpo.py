"""SimPO: make the preferred of two answers likelier per token than the other by a margin, without a reference.

    r(y) = β / |y| · log π(y|x),   loss = −log σ(r(chosen) − r(rejected) − γ)

(Meng et al. 2024, arXiv 2405.14734, eq. 6).

Legend: B pairs of a forward pass; in the last axis of 2, chosen comes before rejected.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from dcr_ds.align.pairs import Pairs
from dcr_ds.align.reference import log_probs
from dcr_ds.align.rewards import pair_figures, pair_sums
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.batches import to_device
from dcr_ds.recipe import Recipe, SimpoSection


def simpo_loss(log_p: torch.Tensor, lengths: torch.Tensor, simpo: SimpoSection) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each pair [B] and the rewards r of its answers [B, 2], from log-probabilities and tokens [B, 2]."""
    rewards = simpo.beta * log_p / lengths
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1] - simpo.gamma), rewards


class SimpoObjective:
    """The mean of the loss over the pairs of a step; see `Objective`."""

    def __init__(self, data: Pairs, recipe: Recipe):
        self.data, self.simpo = data, recipe.align.simpo

    def begin_step(self, engine, step: int, rows: Sequence[int], batching: Batching, ranks: Ranks) -> None:
        """Nothing: the loss of a pair does not depend on other pairs."""

    def num_terms(self, rows: Sequence[int]) -> int:
        """The number of pairs in the step."""
        return len(rows)

    def summed_loss(
        self, model, rows: Sequence[int], alive: Sequence[bool], packed: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over pairs; sums [4] of loss, both rewards, and pairs ranked correctly."""
        weight = to_device(torch.tensor(alive, dtype=torch.float32), device)
        log_p = log_probs(model, [self.data.answers(row) for row in rows], alive, packed, device)
        loss, rewards = simpo_loss(log_p, to_device(self.data.lengths(rows), device), self.simpo)
        return (loss * weight).sum(), pair_sums(loss, rewards, weight)

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        return pair_figures(sums, self.data, rows)
