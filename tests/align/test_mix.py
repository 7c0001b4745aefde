"""The mix of stage 2: the requested share of refusals, nothing truncated, an order that depends only on the seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from dcr_ds.align.mix import encode_mix
from dcr_ds.data.load import RunData
from dcr_ds.data.records import Conversation, ConversationSet
from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_conversation
from dcr_ds.recipe import AlignSection

TOKENIZER = make_tokenizer()
LONG = "and so on " * 30


def conversations(letter, num, num_long=0):
    """`num` conversations, of which the first `num_long` are long."""
    return ConversationSet(
        letter,
        "",
        [
            Conversation(
                f"{letter}{i}",
                (
                    {"role": "user", "content": f"{i}"},
                    {"role": "assistant", "content": LONG if i < num_long else letter},
                ),
            )
            for i in range(num)
        ],
        "",
    )


def mix_of(num_general, num_refusals, safe_ratio="auto", seed=0, long=(0, 0), max_length=200):
    data = RunData(general=conversations("g", num_general, long[0]), refusals=conversations("r", num_refusals, long[1]))
    return encode_mix(AlignSection(safe_ratio=safe_ratio, max_length=max_length), data, TOKENIZER, seed)


@pytest.mark.parametrize("loss_on", ["answers", "all"])
def test_the_loss_covers_answers_or_all_tokens_but_the_first(loss_on):
    data = RunData(general=conversations("g", 2), refusals=conversations("r", 1))
    mix = encode_mix(AlignSection(loss_on=loss_on, max_length=200), data, TOKENIZER, 0)
    sample = mix.samples[0]
    encoded = encode_conversation(TOKENIZER, data.general.rows[0].messages)
    assert sample.ids == encoded.ids
    assert sample.num_supervised == (encoded.num_supervised if loss_on == "answers" else len(encoded.ids) - 1)


def counts(mix):
    return len(mix.samples) - mix.num_refusals, mix.num_refusals


def test_auto_uses_every_row_of_both_sets():
    mix = mix_of(7, 3)
    assert mix.ids == [f"g{i}" for i in range(7)] + ["r0", "r1", "r2"]
    assert counts(mix) == (7, 3)
    assert mix.notes == ["mix: 7 general + 3 refusals, 30.0% refusals"]


@pytest.mark.parametrize(
    ("general", "refusals", "ratio", "expected"),
    [
        (90, 90, 0.1, (90, 10)),
        (90, 5, 0.1, (45, 5)),
        (10, 90, 0.5, (10, 10)),
        (20, 20, 0.75, (7, 20)),
        (8, 2, 0.2, (8, 2)),
        (50, 50, 0.001, (50, 1)),
        (3, 50, 0.99, (1, 50)),
    ],
)
def test_the_larger_set_is_sampled_to_the_ratio(general, refusals, ratio, expected):
    assert counts(mix_of(general, refusals, ratio)) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 0.98))
def test_the_ratio_is_as_close_as_the_rows_allow(general, refusals, ratio):
    kept_general, kept_refusals = counts(mix_of(general, refusals, ratio))
    assert 1 <= kept_general <= general and 1 <= kept_refusals <= refusals
    # rounding to whole rows
    exact = kept_general * ratio / (1 - ratio)
    slack = 0.5 * max(1, ratio / (1 - ratio)) + 1e-9
    assert abs(kept_refusals - exact) <= slack or min(kept_general, kept_refusals) == 1


def test_samples_and_ids_are_in_the_same_order():
    mix = mix_of(30, 30, 0.3)
    data = {row.id: row for row in conversations("g", 30).rows + conversations("r", 30).rows}
    assert mix.samples == [encode_conversation(TOKENIZER, data[row_id].messages) for row_id in mix.ids]
    assert [row_id[0] for row_id in mix.ids] == ["g"] * counts(mix)[0] + ["r"] * counts(mix)[1]


def test_no_row_is_sampled_twice():
    ids = mix_of(40, 40, 0.25).ids
    assert len(set(ids)) == len(ids)


def test_sampling_depends_only_on_the_seed():
    assert mix_of(40, 40, 0.25, seed=5).ids == mix_of(40, 40, 0.25, seed=5).ids
    assert mix_of(40, 40, 0.25, seed=5).ids != mix_of(40, 40, 0.25, seed=6).ids


def test_conversations_that_are_too_long_are_dropped_and_counted():
    mix = mix_of(6, 4, long=(2, 1))
    assert mix.ids == ["g2", "g3", "g4", "g5", "r1", "r2", "r3"]
    assert max(len(sample.ids) for sample in mix.samples) <= 200
    assert mix.notes[:2] == [
        "data.general: 2 of 6 conversations longer than align.max_length = 200 tokens left out",
        "data.refusals: 1 of 4 conversations longer than align.max_length = 200 tokens left out",
    ]


def test_the_ratio_is_that_of_the_remaining_rows():
    assert counts(mix_of(20, 20, 0.5, long=(15, 0))) == (5, 5)


@pytest.mark.parametrize(("long", "name"), [((5, 0), "general"), ((0, 5), "refusals")])
def test_an_empty_set_is_a_user_error(long, name):
    with pytest.raises(UserError, match=f"data.{name}: no conversation has at most align.max_length = 200 tokens"):
        mix_of(5, 5, long=long)


def test_a_conversation_of_exactly_the_limit_is_kept():
    length = len(mix_of(1, 1).samples[0].ids)
    assert counts(mix_of(1, 1, max_length=length)) == (1, 1)
    with pytest.raises(UserError):
        mix_of(1, 1, max_length=length - 1)
