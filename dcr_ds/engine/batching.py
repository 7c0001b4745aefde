"""Distribute the samples of one optimizer step over ranks and forward passes.

Pure functions of the samples, their lengths, the number of ranks and the batching; no torch.
"""

from collections.abc import Iterable, Sequence
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
    return passes_of_ranks(samples, lengths, [rank], world_size, batching)[0]


def passes_of_ranks(
    samples: Sequence[Sample], lengths: Sequence[int], ranks: Iterable[int], world_size: int, batching: Batching
) -> list[list[Sequence[tuple[Sample, bool]]]]:
    """Return the forward passes of each of `ranks`; see `forward_passes`.

    Takes time proportional to the samples of the step, not to samples × ranks.
    """
    order = _by_length(lengths)
    if batching.packed_length is None:
        shares = (_padded_share(samples, order, rank, world_size) for rank in ranks)
        return [micro_batches(share, batching.micro_batch) for share in shares]
    capacity = batching.packed_length
    # with more ranks than samples, the other shares are empty
    number = max(
        len(first_fit(order[rank::world_size], lengths, capacity)) for rank in range(min(world_size, len(order)))
    )
    filler = [(samples[order[0]], False)]
    return [
        [
            [(samples[index], True) for index in row] or filler
            for row in packed_rows(order[rank::world_size], lengths, capacity, number)
        ]
        for rank in ranks
    ]


def _by_length(lengths: Sequence[int]) -> list[int]:
    """Indices of samples from the shortest to the longest."""
    return sorted(range(len(lengths)), key=lambda index: (lengths[index], index))


def _padded_share(
    samples: Sequence[Sample], order: Sequence[int], rank: int, world_size: int
) -> list[tuple[Sample, bool]]:
    """Return this rank's samples of one step, as (sample, alive).

    They are distributed round-robin in the order of their lengths, so that ranks have equal work and micro-batches need
    little padding. All ranks get the same number of samples, and with it of forward passes.
    """
    share = [(samples[index], True) for index in order[rank::world_size]]
    missing = -(-len(order) // world_size) - len(share)
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
