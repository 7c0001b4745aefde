"""Forward passes of the trunk: hidden states of token rows, pooled or per token, sharded over the ranks.

Legend: B rows of a forward pass, N tokens of them, D width, n rows of a set.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from dcr_kernels import pool

from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.models.batches import token_batch

Row = Sequence[int]
Pooling = Literal["last", "mean"]


def hidden_states(engine, rows: Sequence[Row], packed: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of block ℓ at the tokens of all rows, row after row [N, D], and the bounds of the rows [B + 1]."""
    batch = token_batch(rows, packed, device)
    return batch.tokens_of(engine(**batch.inputs).last_hidden_state), batch.bounds


def pooled(engine, rows: Sequence[Row], how: Pooling, shared: int, packed: bool, device: torch.device) -> torch.Tensor:
    """h [B, D] of token rows; see `pool_rows`."""
    hidden, bounds = hidden_states(engine, rows, packed, device)
    return pool_rows(hidden, bounds, rows, how, shared)


def pool_rows(
    hidden: torch.Tensor, bounds: torch.Tensor, rows: Sequence[Row], how: Pooling, shared: int
) -> torch.Tensor:
    """h [B, D] of rows from the hidden states of their tokens [N, D] and the bounds of the rows [B + 1].

    The mean excludes the first `shared` tokens, which are the same in every prompt (a system prompt): the norm of the
    first token is a hundred times larger than the others and would make all means similar.
    """
    if how == "mean" and shared:
        own = torch.cat([torch.arange(len(row)) >= shared for row in rows])
        hidden = hidden[own.nonzero().flatten().to(hidden.device)]
        bounds = bounds - shared * torch.arange(len(rows) + 1, dtype=bounds.dtype, device=hidden.device)
    return pool(hidden, how, cu_seqlens=bounds)[0]


@torch.no_grad()
def embed_all(engine, rows: Sequence[Row], how: Pooling, shared: int, batching: Batching, ranks: Ranks) -> torch.Tensor:
    """h [n, D] of all rows, in float32, the same on all ranks. All ranks."""
    result: torch.Tensor | None = None
    for shard in shards(rows, batching, ranks):
        h = pooled(engine, [rows[index] for index, _ in shard], how, shared, batching.packed, ranks.device).float()
        if result is None:
            result = h.new_zeros(len(rows), h.shape[1])
        for own, (index, alive) in zip(h, shard, strict=True):
            if alive:
                result[index] = own
    assert result is not None  # every rank has a shard, if only of copies
    return sum_over_ranks(result, ranks)


def shards(rows: Sequence[Row], batching: Batching, ranks: Ranks) -> list[Sequence[tuple[int, bool]]]:
    """This rank's forward passes over rows, as (row index, alive); equally many on every rank."""
    return forward_passes(range(len(rows)), [len(row) for row in rows], ranks.rank, ranks.world_size, batching)
