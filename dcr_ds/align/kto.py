"""KTO: make desirable answers likelier than under a reference, and undesirable ones less likely.

    r(x, y) = log π(y|x) − log π_ref(y|x),   z₀ = max(0, mean of r(x, y′) over the step)
    loss = λ_D (1 − σ(β (r − z₀))) of a desirable answer, λ_U (1 − σ(β (z₀ − r))) of an undesirable one

(Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7). z₀ estimates the KL divergence from the reference and has no
gradient. y′ is the answer of another sample: as in TRL, of the one before it in the order of the step. TRL estimates z₀
per micro-batch; here it is the mean over the optimizer step, so that micro-batches and ranks do not change the loss.

Legend: B answers of a forward pass, N answers of the data, S steps of the stage, G samples per step.
"""

from collections.abc import Sequence
from typing import Any

import torch

from dcr_ds.align.labelled import Labelled
from dcr_ds.align.order import num_steps, rows_of_step
from dcr_ds.align.reference import Answers, compute, log_probs
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.batches import to_device
from dcr_ds.recipe import KtoSection, Recipe


def kto_loss(
    log_p: torch.Tensor, reference: torch.Tensor, desirable: torch.Tensor, kl: torch.Tensor | float, kto: KtoSection
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each answer [B] and its reward β r [B].

    Args:
        log_p, reference: log-probabilities under the trained model and the reference [B].
        desirable: labels [B].
        kl: z₀.
    """
    rewards = kto.beta * (log_p - reference)
    gain = rewards - kto.beta * kl
    desired = kto.desirable_weight * torch.sigmoid(-gain)
    return torch.where(desirable, desired, kto.undesirable_weight * torch.sigmoid(gain)), rewards


class ReadByReference(Sequence[Answers]):
    """What the reference reads: all answers, then the mismatched ones of each step, built on demand [N + S · G]."""

    def __init__(self, data: Labelled, recipe: Recipe):
        self.data, self.batch, count = data, recipe.align.global_batch, len(data.samples)
        steps = range(num_steps(recipe.align.epochs, count, self.batch))
        self.steps = [rows_of_step(recipe, count, step) for step in steps]

    def __len__(self) -> int:
        return len(self.data.samples) + len(self.steps) * self.batch

    def __getitem__(self, index):
        count = len(self.data.samples)
        if index < count:
            return self.data.answers(index)
        if index >= len(self):
            raise IndexError(index)
        step, position = divmod(index - count, self.batch)
        return (self.data.mismatched(self.steps[step], position),)


class KtoObjective:
    """The mean loss over all answers in a step; see `Objective`.

    Attributes:
        reference: log-probabilities of all answers under the reference [N], on the CPU; set by `take_reference`.
        mismatched_reference: those of the mismatched answers of each step [S, G].
        kl: z₀ of the current step; set by `begin_step`.
    """

    reference: torch.Tensor
    mismatched_reference: torch.Tensor
    kl: float

    def __init__(self, data: Labelled, recipe: Recipe):
        self.data, self.recipe, self.kto = data, recipe, recipe.align.kto

    def read_by_reference(self) -> Sequence[Answers]:
        return ReadByReference(self.data, self.recipe)

    def take_reference(self, log_p: torch.Tensor) -> None:
        """Set the log-probabilities of `read_by_reference` [N + S · G, 1]."""
        count = len(self.data.samples)
        self.reference = log_p[:count, 0]
        self.mismatched_reference = log_p[count:, 0].view(-1, self.recipe.align.global_batch)

    def begin_step(self, engine, step: int, rows: Sequence[int], batching: Batching, ranks: Ranks) -> None:
        """Estimate z₀ with the current model, without dropout. All ranks."""
        samples = [(self.data.mismatched(rows, position),) for position in range(len(rows))]
        log_p = compute(engine, samples, batching, ranks)[:, 0]
        self.kl = max(0.0, (log_p - self.mismatched_reference[step]).mean().item())

    def num_terms(self, rows: Sequence[int]) -> int:
        """The number of answers in the step."""
        return len(rows)

    def summed_loss(
        self, model, rows: Sequence[int], alive: Sequence[bool], packed: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over answers; sums [3] of the loss, and of the rewards of either label."""
        weight = to_device(torch.tensor(alive, dtype=torch.float32), device)
        desirable = to_device(torch.tensor([self.data.desirable[row] for row in rows]), device)
        log_p = log_probs(model, [self.data.answers(row) for row in rows], alive, packed, device)[:, 0]
        loss, rewards = kto_loss(log_p, to_device(self.reference[list(rows)], device), desirable, self.kl, self.kto)
        rewards = rewards.detach()
        per_answer = torch.stack([loss.detach(), rewards * desirable, rewards * ~desirable])
        return (loss * weight).sum(), per_answer @ weight

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        """Rewards and margin are None if the step has no answer of a label."""
        loss, *rewards = sums.tolist()
        desirable = sum(self.data.desirable[row] for row in rows)
        chosen, rejected = (
            reward / count if count else None
            for reward, count in zip(rewards, (desirable, len(rows) - desirable), strict=True)
        )
        return {
            "loss": loss / len(rows),
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": None if chosen is None or rejected is None else chosen - rejected,
            "kl": self.kl,
            "supervised_tokens": sum(self.data.samples[row].num_supervised for row in rows),
        }
