"""Batches of token ids as tensors.

Legend: B rows, T tokens of the longest row, N tokens of all rows, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of one forward pass.

    inputs: keyword arguments of the model: padded ids [B, T], or packed ids [1, N] with positions that start anew.
    starts: where each row starts in the model's output flattened to [B·T, D].
    places: where the tokens of all rows are in it, one row after the other [N].
    bounds: where each row starts among those, and their number at the end [B + 1], int32.
    """

    inputs: dict[str, Any]
    starts: Sequence[int]
    places: torch.Tensor
    bounds: torch.Tensor

    def tokens_of(self, output: torch.Tensor) -> torch.Tensor:
        """The model's output [B, T, D] at the rows' tokens [N, D], without padding."""
        flat = output.flatten(0, 1)
        return flat if len(flat) == len(self.places) else flat.index_select(0, self.places)


def token_batch(rows: Sequence[Sequence[int]], packed: bool, device: torch.device) -> TokenBatch:
    """Rows of token ids as one forward pass, padded on the right or packed into one row.

    Padding needs no mask: a causal model cannot see it from any real token, whatever id pads; without a mask the
    fastest attention kernels can be used. Packed rows are kept apart by what each attention kernel reads: positions
    (from which transformers builds a block-diagonal mask, where no cache is used), or the bounds.
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
        starts = range(0, ids.numel(), width)
    places = positions + torch.tensor(starts).repeat_interleave(torch.tensor(lengths))
    ids, positions, places, bounds = (to_device(tensor, device) for tensor in (ids, positions, places, bounds))
    inputs: dict[str, Any] = {"input_ids": ids}
    if packed:
        inputs |= {"position_ids": positions[None], "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return TokenBatch(inputs, starts, places, bounds)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] and attention mask [B, T] of rows padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return to_device(ids, device), to_device(mask, device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor just made on the CPU, on a device; the CPU does not wait for a GPU to be done with what came before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
