"""Supervised fine-tuning: −Σ log π(y_t | x, y_<t) over the tokens of the answers, or of prompts and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dcr_ds.align.mix import Mix
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.likelihood import answer_nll


@dataclass
class SftObjective:
    """The mean cross-entropy over the supervised tokens of a step; see `Objective`."""

    data: Mix

    def begin_step(self, engine, step: int, rows: Sequence[int], batching: Batching, ranks: Ranks) -> None:
        """Nothing: the loss of a token does not depend on other samples."""

    def num_terms(self, rows: Sequence[int]) -> int:
        """The number of supervised tokens in the step."""
        return sum(self.data.samples[row].num_supervised for row in rows)

    def summed_loss(
        self, model, rows: Sequence[int], alive: Sequence[bool], packed: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy summed over the supervised tokens, in float32, with and without its graph."""
        loss = answer_nll(model, [self.data.samples[row] for row in rows], alive, packed, device, "sum")
        return loss, loss.detach()

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        tokens = self.num_terms(rows)
        return {"loss": sums.item() / tokens, "supervised_tokens": tokens}
