"""Who computes what in one optimizer step: a pure function of the step's samples, the ranks and the batching.

Legend: B rows, T tokens of the longest, N tokens of all, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch

from dcr_ds.recipe import StageSection

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Batching:
    """How a rank's share becomes forward passes: padded micro-batches, or packed rows where `packed_length` is set.

    micro_batch: samples of a padded micro-batch, at most.
    packed_length: tokens of a packed row, at most; one row is one forward pass.
    """

    micro_batch: int
    packed_length: int | None = None

    @classmethod
    def of(cls, stage: StageSection) -> "Batching":
        """The batching of a resolved stage."""
        return cls(stage.micro_batch, stage.packed_length if stage.packing else None)

    @property
    def packed(self) -> bool:
        return self.packed_length is not None


def forward_passes(
    samples: Sequence[Sample], lengths: Sequence[int], rank: int, world_size: int, batching: Batching
) -> list[Sequence[tuple[Sample, bool]]]:
    """This rank's forward passes of a step, each of (sample, alive); equally many on every rank.

    Every sample is alive once over all ranks. Dead copies weigh nothing in the loss: they only fill up the ranks.
    """
    if not batching.packed:
        return micro_batches(rank_share(samples, lengths, rank, world_size), batching.micro_batch)
    indices = range(len(samples))
    shares = [
        [index for index, alive in rank_share(indices, lengths, other, world_size) if alive]
        for other in range(world_size)
    ]
    number = max(len(first_fit(share, lengths, batching.packed_length)) for share in shares)
    rows = packed_rows(shares[rank], lengths, batching.packed_length, number)
    shortest = min(indices, key=lambda index: lengths[index])
    return [[(samples[index], True) for index in row] or [(samples[shortest], False)] for row in rows]


def rank_share(
    samples: Sequence[Sample], lengths: Sequence[int], rank: int, world_size: int
) -> list[tuple[Sample, bool]]:
    """This rank's samples of a step, as (sample, alive).

    Sorted by length and dealt out in turn, so that ranks get equal work and micro-batches little padding. Every rank
    gets equally many (all must run the same forward passes): the last deal is filled up with dead copies, which weigh
    nothing in the loss.
    """
    order = sorted(range(len(samples)), key=lambda index: (lengths[index], index))
    mine = [(samples[index], True) for index in order[rank::world_size]]
    missing = -(-len(samples) // world_size) - len(mine)
    return mine + [(samples[order[-1]], False)] * missing


def micro_batches(share: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """A rank's share cut into micro-batches of at most `size`; every rank gets the same number."""
    return [share[start : start + size] for start in range(0, len(share), size)]


def first_fit(indices: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices packed into rows of at most `capacity` tokens: the longest first, each into the first row with room.

    First-fit decreasing needs at most 11/9 of the fewest rows possible, plus one (Dósa 2007).

    Raises:
        ValueError: a sample is longer than a row; the recipe refuses such a packed_length before.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(indices, key=lambda index: (-lengths[index], index)):
        if lengths[index] > capacity:
            raise ValueError(f"a sample of {lengths[index]} tokens fits in no row of {capacity}")
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def packed_rows(indices: Sequence[int], lengths: Sequence[int], capacity: int, number: int) -> list[list[int]]:
    """Indices packed into `number` rows of at most `capacity` tokens, at least as many as first fit needs.

    The longest first, each into the emptiest row, so that the passes of a step and of all ranks take alike long and
    need alike much memory; where a row would overflow, the rows of first fit. Rows without a sample are empty lists.
    """
    rows: list[list[int]] = [[] for _ in range(number)]
    filled = [0] * number
    for index in sorted(indices, key=lambda index: (-lengths[index], index)):
        row = filled.index(min(filled))
        rows[row].append(index)
        filled[row] += lengths[index]
    if max(filled) > capacity:
        rows = first_fit(indices, lengths, capacity)
        rows += [[] for _ in range(number - len(rows))]
    return rows


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
