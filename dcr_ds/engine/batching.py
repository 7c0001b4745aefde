"""Distribute the samples of one optimizer step over ranks and forward passes.

Pure functions of the samples, their lengths, the number of ranks and the batching; no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dcr_ds.recipe import StageSection

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Batching:
    """How the samples of a rank become forward passes: padded micro-batches, or packed rows if `packed_length` is set.

    micro_batch: maximum number of samples in a padded micro-batch.
    packed_length: maximum number of tokens in a packed row; each row is one forward pass.
    """

    micro_batch: int
    packed_length: int | None = None

    @classmethod
    def of(cls, stage: StageSection) -> "Batching":
        """The batching of a resolved stage."""
        return cls(int(stage.micro_batch), int(stage.packed_length) if stage.packing else None)

    @property
    def packed(self) -> bool:
        return self.packed_length is not None


def forward_passes(
    samples: Sequence[Sample], lengths: Sequence[int], rank: int, world_size: int, batching: Batching
) -> list[Sequence[tuple[Sample, bool]]]:
    """Return this rank's forward passes for one step, as lists of (sample, alive); every rank has the same number.

    Every sample is alive on exactly one rank. Copies that are not alive are padding: they have no weight in the loss.
    """
    if batching.packed_length is None:
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
    """Return this rank's samples of one step, as (sample, alive).

    Samples are sorted by length and distributed round-robin, so that ranks have equal work and micro-batches need
    little padding. All ranks must run the same number of forward passes, so all get the same number of samples: missing
    ones are filled with copies that are not alive and have no weight in the loss.
    """
    order = sorted(range(len(samples)), key=lambda index: (lengths[index], index))
    share = [(samples[index], True) for index in order[rank::world_size]]
    missing = -(-len(samples) // world_size) - len(share)
    return share + [(samples[order[-1]], False)] * missing


def micro_batches(share: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Split the samples of one rank into micro-batches of at most `size`."""
    return [share[start : start + size] for start in range(0, len(share), size)]


def first_fit(indices: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack indices into rows of at most `capacity` tokens: longest first, each into the first row with room.

    First-fit decreasing needs at most 11/9 of the minimum number of rows, plus one (Dósa 2007).

    Raises:
        ValueError: a sample is longer than a row. The recipe already refuses such a packed_length.
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
    """Pack indices into `number` rows of at most `capacity` tokens; `number` must be at least what `first_fit` needs.

    Longest first, each into the row with the fewest tokens, so that all forward passes take similar time and memory. If
    a row would overflow, the rows of `first_fit` are returned instead. Rows without a sample are empty lists.
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
