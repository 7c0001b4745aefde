"""The load-balancing loss of routers: a mixture of experts should use all its experts alike.

    loss = E · Σ_e f_e P_e

(Fedus et al. 2022, arXiv 2101.03961, eq. 4 to 6, for top-k routing as in transformers). f_e is the number of times that
expert e is chosen per token, P_e its mean probability, over the tokens of all blocks with a router; padding does not
count. f has no gradient. In transformers and TRL, f and P are those of a micro-batch; here both are those of the
optimizer step, so that micro-batches and ranks do not change the loss. A pass without gradients counts f first.

Legend: E experts, k of which read a token; N tokens of a forward pass without padding.
"""

from collections.abc import Sequence
from typing import Any

import torch

from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.errors import UserError
from dcr_ds.models.batches import TokenBatch, to_device, token_batch
from dcr_ds.models.likelihood import IGNORED
from dcr_ds.progress import heartbeat

Pass = Sequence[tuple[int, bool]]  # samples of a forward pass, and whether each is alive


class RouterBalance:
    """The load-balancing loss of each step.

    Attributes:
        slope: gradient of the loss at the sum of the probabilities over all tokens of the step [E].
    """

    slope: torch.Tensor

    def __init__(self, engine, data, packed: bool, ranks: Ranks, coefficient: float):
        """Of an engine around a Likelihood with routers, the samples of its stage, and the weight of the loss."""
        self.engine, self.data, self.packed, self.ranks, self.coefficient = engine, data, packed, ranks, coefficient
        self.top_k = engine.module.model.config.num_experts_per_tok

    @torch.no_grad()
    def begin_step(self, passes: Sequence[Pass]) -> float:
        """Count how often the tokens of a step choose each expert. All ranks.

        Returns:
            The load-balancing loss of the step, without the coefficient.

        Raises:
            UserError: transformers does not return the router logits of this architecture.
        """
        self.engine.eval()
        loads: Any = 0
        first = torch.zeros(1, dtype=torch.long, device=self.ranks.device)
        for group in passes:
            heartbeat("align, tokens per expert")
            inputs = self._batch(group)[0].inputs
            self.engine(where=first, targets=torch.full_like(first, IGNORED), **inputs)  # one row at the head
            loads = loads + self._loads(group)
        self.engine.train()
        chosen, probabilities = sum_over_ranks(loads, self.ranks)
        tokens = chosen.sum() / self.top_k  # of all blocks
        self.slope = len(chosen) * chosen / tokens**2
        return (self.slope @ probabilities).item()

    def share_of(self, group: Pass) -> torch.Tensor:
        """The part of the weighted loss of the step that comes from a forward pass, which must be the last one."""
        return self.coefficient * (self.slope @ self._loads(group)[1])

    def _loads(self, group: Pass) -> torch.Tensor:
        """`expert_loads` of the last forward pass."""
        likelihood = self.engine.module
        if not likelihood.router_logits:
            kind = likelihood.model.config.model_type
            raise UserError(f"align.router_aux_loss_coef: transformers returns no router logits of {kind}; set it to 0")
        batch, alive = self._batch(group)
        return expert_loads(likelihood.router_logits, batch.places, alive, self.top_k)

    def _batch(self, group: Pass) -> tuple[TokenBatch, torch.Tensor]:
        """The tokens of a forward pass, and 1 or 0 per token: whether it is alive [N]."""
        rows = [(answer.ids, float(alive)) for sample, alive in group for answer in self.data.answers(sample)]
        batch = token_batch([ids for ids, _ in rows], self.packed, self.ranks.device)
        return batch, to_device(torch.tensor([alive for ids, alive in rows for _ in ids]), self.ranks.device)


def expert_loads(
    router_logits: Sequence[torch.Tensor], places: torch.Tensor, weight: torch.Tensor, top_k: int
) -> torch.Tensor:
    """How often each expert is chosen, and the sum of its probabilities, over weighted tokens of all blocks [2, E].

    Args:
        router_logits: per block [B · T, E].
        places: of the tokens, without padding [N].
        weight: per token [N].
    """
    loads = []
    for logits in router_logits:
        probabilities = logits.index_select(0, places).float().softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(top_k).indices, 1.0)
        loads.append(torch.stack([weight @ chosen, weight @ probabilities]))
    return torch.stack(loads).sum(0)
