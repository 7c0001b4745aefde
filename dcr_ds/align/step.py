"""One optimizer step of stage 2."""

from typing import Any

import torch

from dcr_ds.align.state import AlignState
from dcr_ds.engine.batching import forward_passes
from dcr_ds.engine.distributed import sum_over_ranks


def train_step(state: AlignState, step: int) -> dict[str, Any]:
    """Accumulate the gradients of a step, counted from 0: the mean of the loss over all its terms. All ranks.

    Returns:
        The figures of the objective, `step_tokens`, and `router_aux_loss` if the routers have one.
    """
    objective, ranks, balance = state.objective, state.ranks, state.balance
    rows = state.rows(step)
    lengths = [objective.data.num_tokens(row) for row in rows]
    passes = forward_passes(rows, lengths, ranks.rank, ranks.world_size, state.batching)
    objective.begin_step(state.engine, step, rows, state.batching, ranks)
    routing = {"router_aux_loss": balance.begin_step(passes)} if balance else {}
    torch.manual_seed(state.recipe.seed + 1_000_003 * step + ranks.rank)  # the same adapter dropout after a resume
    num_terms = objective.num_terms(rows)
    sums: Any = 0
    for group in passes:
        indices, alive = zip(*group, strict=True)
        loss, partial_sums = objective.summed_loss(state.engine, indices, alive, state.batching.packed, ranks.device)
        # DeepSpeed averages over the ranks; the mean is over the terms of all of them
        loss = loss * (ranks.world_size / num_terms)
        if balance:
            loss = loss + ranks.world_size * balance.share_of(group)
        state.engine.backward(loss, scale_wrt_gas=False)
        sums = sums + partial_sums
    return objective.figures(sum_over_ranks(sums, ranks), rows) | routing | {"step_tokens": sum(lengths)}
