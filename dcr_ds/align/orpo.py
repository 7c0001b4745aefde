"""ORPO: supervised fine-tuning on the preferred answer, and a term that makes its odds higher than the other's.

    p(y) = exp(log π(y|x) / |y|),   odds(y) = p(y) / (1 − p(y))
    loss = −mean log π(y_t) − λ · mean log σ(log odds(chosen) − log odds(rejected))

where the first mean is over the tokens of the chosen answers, and the second over pairs (Hong, Lee and Thorne 2024,
arXiv 2403.07691, eq. 6 and 7). There is no reference.

Legend: B pairs of a forward pass; in the last axis of 2, chosen comes before rejected.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from dcr_ds.align.pairs import Pair, Pairs
from dcr_ds.align.reference import Answers, token_nll
from dcr_ds.align.rewards import pair_figures, pair_sums
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.batches import to_device
from dcr_ds.recipe import OrpoSection, Recipe

NEARLY_ONE = -(2.0**-23)  # the largest log p: above it, 1 − p is 0 in float32, and the odds are infinite
LOG_HALF = -0.6931471805599453


def odds_loss(
    log_p: torch.Tensor, lengths: torch.Tensor, orpo: OrpoSection
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per pair λ times the odds-ratio loss [B], the log odds ratio [B], and λ · log p of both answers [B, 2].

    Args:
        log_p: log-probabilities of the answers [B, 2].
        lengths: their tokens [B, 2].
    """
    mean = (log_p / lengths).clamp(max=NEARLY_ONE)
    log_odds = mean - _log_one_minus_exp(mean)
    ratio = log_odds[:, 0] - log_odds[:, 1]
    return -orpo.weight * F.logsigmoid(ratio), ratio, orpo.weight * mean


def _log_one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 − eˣ) of x < 0 without cancellation (Mächler 2012, doi 10.13140/RG.2.2.11834.70084)."""
    return torch.where(x < LOG_HALF, torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))


class OrpoObjective:
    """The mean SFT loss over all tokens in a step, plus the mean odds-ratio loss over its pairs; see `Objective`.

    Attributes:
        pairs_per_token: of the SFT term of the current step; set by `begin_step`.
    """

    pairs_per_token: float

    def __init__(self, data: Pairs, recipe: Recipe):
        self.data, self.orpo = data, recipe.align.orpo
        self.on_prompts = recipe.align.loss_on == "all"

    def begin_step(self, engine, step: int, rows: Sequence[int], batching: Batching, ranks: Ranks) -> None:
        """Count the tokens of the SFT term, whose mean is over all of them."""
        tokens = sum(self._supervised(self.data.samples[row])[0].num_supervised for row in rows)
        self.pairs_per_token = len(rows) / tokens

    def num_terms(self, rows: Sequence[int]) -> int:
        """The number of pairs in the step."""
        return len(rows)

    def summed_loss(
        self, model, rows: Sequence[int], alive: Sequence[bool], packed: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over pairs; sums [6] of those of `pair_sums`, of the SFT loss and of the log odds ratio."""
        weight = to_device(torch.tensor(alive, dtype=torch.float32), device)
        lengths = self.data.lengths(rows)
        nll = token_nll(model, [self._supervised(self.data.samples[row]) for row in rows], alive, packed, device)
        log_p = -torch.stack(
            [tokens[-length:].sum() for tokens, length in zip(nll, lengths.flatten().tolist(), strict=True)]
        )
        odds, ratio, rewards = odds_loss(log_p.view(-1, 2), to_device(lengths, device), self.orpo)
        sft = torch.stack([tokens.sum() for tokens in nll[::2]]) * self.pairs_per_token
        loss = sft + odds
        sums = torch.stack([sft.detach(), ratio.detach()]) @ weight
        return (loss * weight).sum(), torch.cat([pair_sums(loss, rewards, weight), sums])

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        sft, ratio = (sums[4:] / len(rows)).tolist()
        return pair_figures(sums[:4], self.data, rows) | {"sft_loss": sft, "log_odds_ratio": ratio}

    def _supervised(self, pair: Pair) -> Answers:
        """Both conversations; with `loss_on: all`, the chosen one with its prompt, but for the first token."""
        return (replace(pair.chosen, prompt_tokens=1), pair.rejected) if self.on_prompts else pair.both
