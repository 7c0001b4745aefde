"""Every sample of a step is computed once, by one rank, and all ranks do equally many."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from dcr_ds.engine.batches import micro_batches, pad_right, rank_share

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=40)
WORLDS = st.integers(1, 9)


def shares(lengths, world_size):
    return [rank_share(range(len(lengths)), lengths, rank, world_size) for rank in range(world_size)]


@given(LENGTHS, WORLDS)
def test_every_sample_is_alive_once_over_the_ranks(lengths, world_size):
    alive = Counter(sample for share in shares(lengths, world_size) for sample, is_alive in share if is_alive)
    assert alive == Counter(range(len(lengths)))


@given(LENGTHS, WORLDS)
def test_ranks_have_equally_many_and_no_more_than_needed(lengths, world_size):
    assert {len(share) for share in shares(lengths, world_size)} == {-(-len(lengths) // world_size)}


@given(LENGTHS, WORLDS)
def test_dead_copies_only_fill_the_last_place(lengths, world_size):
    for share in shares(lengths, world_size):
        assert all(is_alive for _, is_alive in share[:-1])
    dead = sum(not is_alive for share in shares(lengths, world_size) for _, is_alive in share)
    assert dead == -len(lengths) % world_size


@given(LENGTHS, WORLDS)
def test_ranks_work_on_like_lengths(lengths, world_size):
    for deal in zip(*shares(lengths, world_size), strict=True):
        following = [lengths[sample] for sample, _ in deal]
        assert following == sorted(following)
    totals = [sum(lengths[sample] for sample, _ in share) for share in shares(lengths, world_size)]
    assert max(totals) - min(totals) <= max(lengths)


@given(LENGTHS, WORLDS)
def test_a_share_depends_on_the_samples_not_on_their_names(lengths, world_size):
    letters = [f"sample {index}" for index in range(len(lengths))]
    for rank, share in enumerate(shares(lengths, world_size)):
        assert rank_share(letters, lengths, rank, world_size) == [(letters[index], alive) for index, alive in share]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_micro_batches_cut_a_share_in_order(share, size):
    groups = micro_batches(share, size)
    assert [sample for group in groups for sample in group] == share
    assert all(len(group) == size for group in groups[:-1]) and all(0 < len(group) <= size for group in groups)


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(-5, 5))
def test_padding_is_on_the_right_and_masked(rows, pad_id):
    ids, mask = pad_right(rows, pad_id, torch.device("cpu"))
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert ids.dtype == torch.int64
    for row, row_ids, row_mask in zip(rows, ids, mask, strict=True):
        assert row_ids.tolist() == row + [pad_id] * (len(row_ids) - len(row))
        assert row_mask.tolist() == [1] * len(row) + [0] * (len(row_ids) - len(row))
