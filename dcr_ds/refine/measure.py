"""Measure what stage 1 changes: separation of held-out prompts, drift of held-out general conversations."""

import torch

from dcr_ds.engine.distributed import sum_over_ranks
from dcr_ds.refine.embed import embed_all, hidden_states, pool_rows, shards
from dcr_ds.refine.retain import distances_of, drift
from dcr_ds.refine.separation import separation
from dcr_ds.refine.state import RefineState


def measure(state: RefineState) -> dict[str, float]:
    """Gap, AUC, similarities within and across the sets, and drift; the same on all ranks. All ranks."""
    prompts, ranks = state.prompts, state.ranks
    rows, labels, pairs = zip(*prompts.held_out, strict=True)
    if state.joins_passes:
        h, drifted = _embed_and_drift(state)
    else:
        h = embed_all(state.engine, rows, state.recipe.refine.pooling, prompts.num_shared, state.batching, ranks)
        drifted = drift(state.engine, prompts.held_out_general, state.held_out_anchors, state.batching, ranks)
    figures = separation(h.cpu(), torch.tensor(labels), torch.tensor(pairs)) | {"drift": drifted}
    return {name: round(value, 6) for name, value in figures.items()}


@torch.no_grad()
def _embed_and_drift(state: RefineState) -> tuple[torch.Tensor, float]:
    """h [n, D] of the held-out prompts and the drift of the held-out conversations, in the same forward passes."""
    rows, ranks, prompts = state.measured_rows, state.ranks, state.prompts
    num_prompts = len(prompts.held_out)
    result: torch.Tensor | None = None
    sums = torch.zeros(2, device=ranks.device)  # distances, tokens
    for shard in shards(rows, state.batching, ranks):
        first = [(index, alive) for index, alive in shard if index < num_prompts]
        rest = [(index, alive) for index, alive in shard if index >= num_prompts]
        own = [rows[index] for index, _ in [*first, *rest]]
        hidden, bounds = hidden_states(state.engine, own, state.batching.packed, ranks.device)
        if result is None:
            result = torch.zeros(num_prompts, hidden.shape[1], device=ranks.device)
        num_tokens = sum(len(row) for row in own[: len(first)])
        if first:
            how, own_bounds = state.recipe.refine.pooling, bounds[: len(first) + 1]
            h = pool_rows(hidden[:num_tokens], own_bounds, own[: len(first)], how, prompts.num_shared)
            for embedding, (index, alive) in zip(h.float(), first, strict=True):
                if alive:
                    result[index] = embedding
        if rest:
            distance, weight = distances_of(hidden[num_tokens:], rows, rest, state.held_out_anchors)
            sums += torch.stack([(distance.sqrt() * weight).sum(), weight.sum()])
    assert result is not None  # every rank has a shard, if only of copies
    distance, tokens = sum_over_ranks(sums, ranks).tolist()
    return sum_over_ranks(result, ranks), distance / tokens
