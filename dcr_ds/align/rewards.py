"""Rewards of pairs: the sums and metrics that DPO, ORPO and SimPO have in common.

Legend: B pairs of a forward pass; in the last axis of 2, chosen comes before rejected.
"""

from collections.abc import Sequence
from typing import Any

import torch

from dcr_ds.align.pairs import Pairs


def pair_sums(loss: torch.Tensor, rewards: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums [4] over pairs of the loss, of both rewards, and of pairs ranked correctly.

    Args:
        loss, weight: [B].
        rewards: [B, 2].
    """
    chosen, rejected = rewards.detach().unbind(1)
    return torch.stack([loss.detach(), chosen, rejected, (chosen > rejected).float()]) @ weight


def pair_figures(sums: torch.Tensor, data: Pairs, rows: Sequence[int]) -> dict[str, Any]:
    """Metrics of a step, from the sums over all its pairs."""
    loss, chosen, rejected, accuracy = (sums / len(rows)).tolist()
    return {
        "loss": loss,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "margin": chosen - rejected,
        "accuracy": accuracy,
        "supervised_tokens": sum(answer.num_supervised for row in rows for answer in data.answers(row)),
    }
