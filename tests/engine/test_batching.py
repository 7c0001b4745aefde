"""Every sample of a step is computed exactly once, and all ranks run the same number of forward passes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_ds.engine.batching import (
    Batching,
    first_fit,
    forward_passes,
    micro_batches,
    packed_rows,
    passes_of_ranks,
)

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=40)
WORLDS = st.integers(1, 9)


def shares(lengths, world_size, samples=None):
    """The samples of each rank, all in one micro-batch."""
    passes = passes_of_ranks(samples or range(len(lengths)), lengths, range(world_size), world_size, Batching(40))
    return [share for [share] in passes]


@given(LENGTHS, WORLDS)
def test_every_sample_is_alive_on_exactly_one_rank(lengths, world_size):
    alive = Counter(sample for share in shares(lengths, world_size) for sample, is_alive in share if is_alive)
    assert alive == Counter(range(len(lengths)))


@given(LENGTHS, WORLDS)
def test_all_ranks_have_the_same_number_of_samples(lengths, world_size):
    assert {len(share) for share in shares(lengths, world_size)} == {-(-len(lengths) // world_size)}


@given(LENGTHS, WORLDS)
def test_copies_only_fill_the_last_place(lengths, world_size):
    for share in shares(lengths, world_size):
        assert all(is_alive for _, is_alive in share[:-1])
    dead = sum(not is_alive for share in shares(lengths, world_size) for _, is_alive in share)
    assert dead == -len(lengths) % world_size


@given(LENGTHS, WORLDS)
def test_ranks_have_samples_of_similar_length(lengths, world_size):
    for round_ in zip(*shares(lengths, world_size), strict=True):
        following = [lengths[sample] for sample, _ in round_]
        assert following == sorted(following)
    totals = [sum(lengths[sample] for sample, _ in share) for share in shares(lengths, world_size)]
    assert max(totals) - min(totals) <= max(lengths)


@given(LENGTHS, WORLDS)
def test_share_depends_on_lengths_only(lengths, world_size):
    letters = [f"sample {index}" for index in range(len(lengths))]
    expected = [[(letters[index], alive) for index, alive in share] for share in shares(lengths, world_size)]
    assert shares(lengths, world_size, letters) == expected


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_micro_batches_keep_the_order(share, size):
    groups = micro_batches(share, size)
    assert [sample for group in groups for sample in group] == share
    assert all(len(group) == size for group in groups[:-1]) and all(0 < len(group) <= size for group in groups)


@given(
    LENGTHS,
    WORLDS,
    st.one_of(st.builds(Batching, st.integers(1, 9)), st.builds(Batching, st.just(1), st.integers(9, 40))),
)
def test_forward_passes_contain_every_sample_once(lengths, world_size, batching):
    passes = [forward_passes(range(len(lengths)), lengths, rank, world_size, batching) for rank in range(world_size)]
    assert len({len(own) for own in passes}) == 1
    alive = Counter(sample for own in passes for group in own for sample, is_alive in group if is_alive)
    assert alive == Counter(range(len(lengths)))
    assert all(group for own in passes for group in own)
    if batching.packed:
        for group in (group for own in passes for group in own):
            assert sum(lengths[sample] for sample, _ in group) <= batching.packed_length
        fewest = len(first_fit(range(len(lengths)), lengths, batching.packed_length))
        assert world_size > 1 or len(passes[0]) == fewest


@given(LENGTHS, WORLDS, st.integers(9, 40))
def test_packed_rows_of_a_rank_are_those_of_its_share(lengths, world_size, capacity):
    own = [[sample for sample, alive in share if alive] for share in shares(lengths, world_size)]
    number = max(len(first_fit(share, lengths, capacity)) for share in own)
    passes = passes_of_ranks(range(len(lengths)), lengths, range(world_size), world_size, Batching(1, capacity))
    for share, of_rank in zip(own, passes, strict=True):
        rows = [[sample for sample, alive in group if alive] for group in of_rank]
        assert rows == packed_rows(share, lengths, capacity, number)


class Counted(list):
    """A list that counts how often an element is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("batching", [Batching(2), Batching(1, 512)])
def test_planning_a_rank_reads_each_length_a_few_times(batching):
    lengths = Counted(1 + 37 * index % 256 for index in range(2048))
    forward_passes(range(2048), lengths, 5, 1024, batching)
    assert lengths.reads < 10 * 2048


@given(LENGTHS, st.integers(9, 40))
def test_first_fit_uses_the_first_row_with_room(lengths, capacity):
    rows = first_fit(range(len(lengths)), lengths, capacity)
    filled = [sum(lengths[sample] for sample in row) for row in rows]
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(tokens <= capacity for tokens in filled)
    for later, row in enumerate(rows):
        assert all(filled[earlier] + lengths[sample] > capacity for earlier in range(later) for sample in row)


@given(LENGTHS, st.integers(9, 40), st.integers(0, 3))
def test_packed_rows_are_balanced(lengths, capacity, more):
    fewest = len(first_fit(range(len(lengths)), lengths, capacity))
    rows = packed_rows(range(len(lengths)), lengths, capacity, fewest + more)
    assert len(rows) == fewest + more
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    filled = [sum(lengths[sample] for sample in row) for row in rows]
    assert max(filled) <= capacity
    if rows[:fewest] != first_fit(range(len(lengths)), lengths, capacity):
        assert max(filled) - min(filled) <= max(lengths)


def test_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="12 tokens fits in no row of 8"):
        first_fit([0, 1], [3, 12], 8)
