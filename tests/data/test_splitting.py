"""The held-out share: twins stay together, the count is close to it, and the order of rows does not matter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr_ds.data import split_held_out
from dcr_ds.data.records import Prompt
from dcr_ds.errors import UserError


def prompts(name, pairs, singles=0):
    """One prompt for each pair key, and some without."""
    paired = [Prompt(f"{name}-{number}", f"{name} {number}", pair=str(key)) for number, key in enumerate(pairs)]
    return paired + [Prompt(f"{name}-single-{number}", f"{name} single {number}") for number in range(singles)]


def keys(rows):
    return {row.pair for row in rows} - {None}


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(st.integers(0, 40), max_size=60),
    second=st.lists(st.integers(0, 40), max_size=60),
    singles=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_splitting_keeps_twins_together_and_loses_no_row(first, second, singles, share, seed):
    sets = prompts("s", first, singles[0]), prompts("t", second, singles[1])
    try:
        split = split_held_out(*sets, share, seed)
    except UserError as error:
        assert "add rows" in str(error)
        return
    held_out_keys = keys(split.held_out_seemingly_toxic) | keys(split.held_out_toxic)
    trained = keys(split.seemingly_toxic) | keys(split.toxic)
    assert not held_out_keys & trained
    for rows, train, held_out in zip(sets, split[:2], split[2:], strict=True):
        assert sorted(row.id for row in (*train, *held_out)) == sorted(row.id for row in rows)
        assert min(len(train), len(held_out)) >= 2


@pytest.mark.parametrize(("pairs", "singles"), [((100, 100), (0, 0)), ((80, 200), (300, 7)), ((50, 50), (2000, 0))])
@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_the_held_out_share_is_close_in_uneven_sets(pairs, singles, share):
    sets = [prompts(name, range(pairs[i]), singles[i]) for i, name in enumerate("st")]
    split = split_held_out(*sets, share, 0)
    for rows, held_out in zip(sets, split[2:], strict=True):
        assert abs(len(held_out) - share * len(rows)) <= 1.5 + (share * len(rows) < 2)


def test_the_split_depends_on_the_seed_and_not_on_the_order():
    first, second = prompts("s", range(60), 10), prompts("t", range(30, 90), 10)
    split = split_held_out(first, second, 0.2, 0)
    backwards = split_held_out(first[::-1], second[::-1], 0.2, 0)
    assert [rows[::-1] for rows in backwards] == list(split)
    assert keys(split_held_out(first, second, 0.2, 1).toxic) != keys(split.toxic)


def test_the_split_never_changes_between_versions():
    split = split_held_out(prompts("s", range(20)), prompts("t", range(20)), 0.15, 0)
    assert sorted(row.pair for row in split.held_out_toxic) == ["10", "17", "8"]


def test_equal_ids_in_two_files_do_not_form_a_pair():
    rows = [Prompt(str(number), f"prompt {number}") for number in range(40)]
    split = split_held_out(rows, rows, 0.2, 0)
    assert {row.id for row in split.held_out_toxic} != {row.id for row in split.held_out_seemingly_toxic}


def test_few_rows_of_a_set_among_many_of_the_other():
    split = split_held_out(prompts("s", range(500)), prompts("t", range(5)), 0.05, 0)
    assert len(split.held_out_toxic) == 2 and len(split.toxic) == 3
    assert keys(split.held_out_toxic) <= keys(split.held_out_seemingly_toxic)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (prompts("s", range(3)), prompts("t", range(9))),
        (prompts("s", range(9)), []),
        (prompts("s", [1] * 50), prompts("t", range(9))),
    ],
)
def test_too_few_rows_to_split(first, second):
    with pytest.raises(UserError, match="cannot be split into at least 2 training and 2 held-out rows"):
        split_held_out(first, second, 0.15, 0)
