"""The forward passes of one optimizer step: a pure function of the step's samples, the ranks and the batching."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

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
