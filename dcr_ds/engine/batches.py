"""Who computes what in one optimizer step: a pure function of the step's samples, the ranks and the micro-batch.

Legend: B samples, T tokens of the longest.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch

Sample = TypeVar("Sample")


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


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] and attention mask [B, T] of rows padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return to_device(ids, device), to_device(mask, device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor just made on the CPU, on a device; the CPU does not wait for a GPU to be done with what came before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
