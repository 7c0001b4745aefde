"""Forward passes of the trunk: hidden states of token rows, pooled or whole, sharded over the ranks.

Legend: B rows, T tokens of the longest, D width, n rows in all.
"""

from collections.abc import Sequence

import torch
from dcr_kernels import pool

from dcr_ds.engine.batches import micro_batches, pad_right, rank_share
from dcr_ds.engine.ranks import Ranks, sum_over_ranks


def hidden_states(engine, rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of block ℓ [B, T, D] and the mask [B, T] of token rows, padded on the right."""
    ids, mask = pad_right(rows, 0, device)  # masked, so any id pads
    return engine(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def pooled(engine, rows: Sequence[Sequence[int]], how: str, shared: int, device: torch.device) -> torch.Tensor:
    """h [B, D] of token rows.

    The mean leaves out the first `shared` tokens, which are the same in every prompt (a system prompt): the first
    token's norm alone is a hundred times the others', and a mean over it is the same for all prompts.
    """
    hidden, mask = hidden_states(engine, rows, device)
    if how == "mean":
        mask[:, :shared] = 0
    return pool(hidden, how, mask)[0]


@torch.no_grad()
def embed_all(
    engine, rows: Sequence[Sequence[int]], how: str, shared: int, micro_batch: int, ranks: Ranks
) -> torch.Tensor:
    """h [n, D] in float32 of all rows, the same on all ranks. All ranks."""
    result: torch.Tensor | None = None
    for shard in shards(rows, micro_batch, ranks):
        h = pooled(engine, [rows[index] for index, _ in shard], how, shared, ranks.device).float()
        if result is None:
            result = h.new_zeros(len(rows), h.shape[1])
        for state, (index, alive) in zip(h, shard, strict=True):
            if alive:
                result[index] = state
    return sum_over_ranks(result, ranks)


def num_shared_tokens(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens are the same in all rows; less than the length of any."""
    first, last = min(rows), max(rows)  # what the extremes in order share, all share
    same = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(same, min(len(row) for row in rows) - 1)


def shards(rows: Sequence[Sequence[int]], micro_batch: int, ranks: Ranks) -> list[Sequence[tuple[int, bool]]]:
    """This rank's micro-batches of (row index, alive), sorted by length; equally many on every rank."""
    share = rank_share(range(len(rows)), [len(row) for row in rows], ranks.rank, ranks.world_size)
    return micro_batches(share, micro_batch)
