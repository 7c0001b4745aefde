"""Direct preference optimisation: make the preferred of two answers likelier than the other, against a reference.

    r(y) = β (log π(y|x) − log π_ref(y|x)),   loss = −log σ(r(chosen) − r(rejected))

(Rafailov et al. 2023, arXiv 2305.18290, eq. 7). `sigmoid_norm` divides each log-ratio by the number of tokens of the
answer, so that longer answers are not preferred for their length (Lambert et al. 2024, Tülu 3, arXiv 2411.15124).

Legend: B pairs of a forward pass, N pairs of the data; in the last axis of 2, chosen comes before rejected.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from dcr_ds.align.pairs import Pairs
from dcr_ds.align.reference import Answers, log_probs
from dcr_ds.align.rewards import pair_figures, pair_sums
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.batches import to_device
from dcr_ds.recipe import DpoSection, Recipe


def preference_loss(
    log_p: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, dpo: DpoSection
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each pair [B] and the rewards r of its answers [B, 2].

    Args:
        log_p, reference: log-probabilities of the answers under the trained model and the reference [B, 2].
        lengths: tokens of the answers [B, 2].
    """
    ratios = log_p - reference
    rewards = dpo.beta * (ratios / lengths if dpo.loss == "sigmoid_norm" else ratios)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards


class DpoObjective:
    """The mean of the preference loss over the pairs of a step; see `Objective`.

    Attributes:
        reference: log-probabilities of all pairs under the reference [N, 2], on the CPU; set by `take_reference`.
    """

    reference: torch.Tensor

    def __init__(self, data: Pairs, recipe: Recipe):
        self.data, self.dpo = data, recipe.align.dpo

    def read_by_reference(self) -> Sequence[Answers]:
        return [pair.both for pair in self.data.samples]

    def take_reference(self, log_p: torch.Tensor) -> None:
        """Set the log-probabilities of `read_by_reference` [N, 2]."""
        self.reference = log_p

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
        loss, rewards = preference_loss(
            log_probs(model, [self.data.answers(row) for row in rows], alive, packed, device),
            to_device(self.reference[list(rows)], device),
            to_device(self.data.lengths(rows), device),
            self.dpo,
        )
        return (loss * weight).sum(), pair_sums(loss, rewards, weight)

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        return pair_figures(sums, self.data, rows)
