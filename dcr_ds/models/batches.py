"""Batches of token ids as tensors.

Legend: B rows, T tokens of the longest row, N tokens of all rows, D width.
"""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of one forward pass.

    inputs: keyword arguments of the model: padded ids [B, T], or packed ids [1, N] with positions that restart per row.
    starts: offset of each row in the model's output flattened to [B·T, D].
    places: offsets of all tokens in the flattened output, row after row [N].
    bounds: cumulative row lengths, starting with 0 [B + 1], int32.
    """

    inputs: dict[str, Any]
    starts: Sequence[int]
    places: torch.Tensor
    bounds: torch.Tensor

    def tokens_of(self, output: torch.Tensor) -> torch.Tensor:
        """Select the tokens of all rows, without padding, from the model's output: [B, T, D] → [N, D]."""
        flat = output.flatten(0, 1)
        return flat if len(flat) == len(self.places) else flat.index_select(0, self.places)


def token_batch(rows: Sequence[Sequence[int]], packed: bool, device: torch.device) -> TokenBatch:
    """Build one forward pass from rows of token ids, padded on the right or packed into one row.

    Padding needs no mask: in a causal model no real token attends to padding on its right, and without a mask the
    fastest attention kernels can be used. Packed rows are separated by position ids (from which transformers builds a
    block-diagonal mask when no cache is used) and by cumulative lengths; each attention kernel reads one of the two.
    """
    lengths = [len(row) for row in rows]
    ends = list(accumulate(lengths))
    bounds = torch.tensor([0, *ends], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    if packed:
        ids = torch.tensor([[token for row in rows for token in row]])
        starts = [0, *ends[:-1]]
    else:
        width = max(lengths)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        starts = list(range(0, ids.numel(), width))
    places = positions + torch.tensor(starts).repeat_interleave(torch.tensor(lengths))
    ids, positions, places, bounds = (to_device(tensor, device) for tensor in (ids, positions, places, bounds))
    inputs: dict[str, Any] = {"input_ids": ids}
    if packed:
        inputs |= {"position_ids": positions[None], "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return TokenBatch(inputs, starts, places, bounds)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right: token ids [B, T] and attention mask [B, T]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return to_device(ids, device), to_device(mask, device)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the left, so that all end at the same position: token ids [B, T] and attention mask [B, T]."""
    ids, mask = pad_right([row[::-1] for row in rows], pad_id, device)
    return ids.flip(1), mask.flip(1)


def num_shared_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that are the same in all rows; less than the length of any row."""
    return min(len(os.path.commonprefix([list(row) for row in rows])), min(map(len, rows)) - 1)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a new CPU tensor to a device; for a GPU without waiting for the kernels already queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
