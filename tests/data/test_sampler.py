"""The order of the data: permutations, resuming, classes in a batch, twins."""

from collections import Counter

import pytest
from growth import least_seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr_ds.data import ContrastiveSampler, draw
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import draw_whole, match_twins
from dcr_ds.errors import UserError


def prompts(name, count, pairs=()):
    keys = [*pairs, *[None] * count][:count]
    return [Prompt(f"{name}-{number}", f"{name} {number}", pair=key) for number, key in enumerate(keys)]


@settings(deadline=None)
@given(seed=st.integers() | st.sampled_from(["0/toxic", "ü"]), n=st.integers(1, 60), epochs=st.integers(1, 4))
def test_every_epoch_is_a_permutation(seed, n, epochs):
    entries = draw(seed, n, 0, n * epochs)
    for epoch in range(epochs):
        assert sorted(entries[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(1, 60), start=st.integers(0, 10**12), count=st.integers(0, 200), cut=st.integers(0, 200))
def test_sampling_in_pieces_gives_the_same_rows(n, start, count, cut):
    cut = min(cut, count)
    expected = draw(7, n, start, count)
    assert len(expected) == count
    assert expected == draw(7, n, start, cut) + draw(7, n, start + cut, count - cut)


def test_the_order_never_changes_between_versions():
    assert draw(0, 10, 0, 12) == [8, 9, 0, 3, 7, 4, 1, 5, 2, 6, 8, 6]


def test_epochs_and_seeds_differ():
    first, second = draw(0, 100, 0, 100), draw(0, 100, 100, 100)
    assert first != second and first != draw(1, 100, 0, 100)


def test_sampling_far_into_the_data_costs_no_more_than_at_its_start():
    near = least_seconds(lambda: draw(3, 20_000, 0, 32))
    assert least_seconds(lambda: draw(3, 20_000, 10_000_000, 32)) < 10 * near


def test_empty_sets_are_an_error():
    with pytest.raises(ValueError, match="n must be at least 1"):
        draw(0, 0, 0, 1)


@settings(deadline=None)
@given(n=st.integers(1, 40), count=st.integers(1, 20), step=st.integers(0, 10**6))
def test_a_step_repeats_no_row_if_the_set_is_large_enough(n, count, step):
    rows = draw_whole(0, n, step, count)
    assert len(rows) == count
    if n >= count:
        assert len(set(rows)) == count
    else:
        assert max(Counter(rows).values()) <= count // n + 2


def test_every_row_is_sampled():
    counts = Counter(index for step in range(3000) for index in draw_whole(0, 10, step, 4))
    assert set(counts) == set(range(10)) and max(counts.values()) < 1.15 * min(counts.values())


@settings(deadline=None, max_examples=50)
@given(
    counts=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    half=st.integers(1, 12),
    step=st.integers(0, 10**6),
)
def test_mixed_batches_alternate_the_classes(counts, half, step):
    first, second = prompts("s", counts[0]), prompts("t", counts[1])
    batch = ContrastiveSampler(first, second, 2 * half, "mixed", 0).batch(step)
    assert [label for _, label in batch] == [0, 1] * half
    assert all(row in (first, second)[label] for row, label in batch)
    for label, rows in enumerate((first, second)):
        ids = [row.id for row, row_label in batch if row_label == label]
        assert len(set(ids)) == half or len(rows) < half


def test_the_classes_of_a_mixed_batch_are_sampled_independently():
    sampler = ContrastiveSampler(prompts("s", 50), prompts("t", 50), 100, "mixed", 0)
    numbers = [row.id.split("-")[1] for row, _ in sampler.batch(0)]
    assert numbers[::2] != numbers[1::2]


def test_matched_batches_contain_both_twins_next_to_each_other():
    first, second = prompts("s", 12, "abcdefgh"), prompts("t", 9, "hgfedcba")
    sampler = ContrastiveSampler(first, second, 8, "matched", 0)
    for step in range(20):
        batch = sampler.batch(step)
        assert [label for _, label in batch] == [0, 1] * 4
        assert len({row.id for row, _ in batch}) == 8
        for (left, _), (right, _) in zip(batch[::2], batch[1::2], strict=True):
            assert left.pair == right.pair is not None
    assert sampler.notes == [
        "4 seemingly toxic rows left out: no twin (refine.pairs: matched)",
        "1 toxic rows left out: no twin (refine.pairs: matched)",
    ]


def test_several_rows_of_one_pair_are_matched_in_order():
    twins = match_twins(prompts("s", 4, "aaba"), prompts("t", 4, "abaz"))
    assert [(left.id, right.id) for left, right in twins] == [("s-0", "t-0"), ("s-1", "t-2"), ("s-2", "t-1")]


def test_batches_do_not_depend_on_earlier_ones():
    sets = prompts("s", 30, map(str, range(30))), prompts("t", 30, map(str, range(30)))
    for pairs in ("mixed", "matched"):
        there = ContrastiveSampler(*sets, 8, pairs, 0)
        batches = [there.batch(step) for step in range(30)]
        assert ContrastiveSampler(*sets, 8, pairs, 0).batch(29) == batches[29] != batches[28]
        assert ContrastiveSampler(*sets, 8, pairs, 1).batch(29) != batches[29]


def test_matched_batches_without_twins():
    with pytest.raises(
        UserError,
        match="refine.pairs: matched requires rows .* with the same `pair`",
    ):
        ContrastiveSampler(prompts("s", 3, "abc"), prompts("t", 3, "xyz"), 2, "matched", 0)


def test_a_batch_larger_than_the_set_is_noted():
    (note,) = ContrastiveSampler(prompts("s", 3), prompts("t", 30), 8, "mixed", 0).notes
    assert "a batch of 8 contains repeats" in note


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="5 is not even"):
        ContrastiveSampler(prompts("s", 3), prompts("t", 3), 5, "mixed", 0)


@settings(deadline=None)
@given(step=st.integers(0, 10**6), half=st.integers(2, 20), seed=st.integers(0, 5))
def test_a_positive_is_another_prompt_of_the_same_label(step, half, seed):
    sampler = ContrastiveSampler(prompts("a", 50), prompts("b", 50), 2 * half, "mixed", seed)
    batch, positives = sampler.batch(step), sampler.positives(step)
    assert len(positives) == len(batch)
    for place, positive in enumerate(positives):
        assert positive != place and batch[positive][1] == batch[place][1]
    assert positives == sampler.positives(step)


def test_positives_change_from_step_to_step_and_reach_every_row():
    sampler = ContrastiveSampler(prompts("a", 8), prompts("b", 8), 8, "mixed", 0)
    drawn = [sampler.positives(step) for step in range(60)]
    for place in range(8):
        assert {row[place] for row in drawn} == {other for other in range(place % 2, 8, 2) if other != place}
