"""Stage 1 does not train on held-out prompts, and drops and counts prompts that are too long."""

from collections import Counter

import pytest
from tiny import make_tokenizer

from dcr_ds.data.load import RunData, load_data
from dcr_ds.data.records import Conversation, ConversationSet, Prompt, PromptSet
from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_conversation, encode_prompt
from dcr_ds.recipe import Recipe, load_recipe
from dcr_ds.refine.prompts import DRIFT_ROWS, HeldOut, encode_refine_prompts, limit_held_out

TOKENIZER = make_tokenizer()
LONG = "at great length " * 20


def talk(index, answer):
    return Conversation(f"g{index}", ({"role": "user", "content": "a"}, {"role": "assistant", "content": answer}))


def made_up(num=12, num_long=0, num_talks=10, num_long_talks=0):
    """`num` prompts per class, all twins except the first two; the last `num_long` per class are long."""
    texts = [f"{i} {LONG if i >= num - num_long else 'short'}" for i in range(num)]
    seeming = [Prompt(f"s{i}", f"paint {text}", pair=str(i) if i > 1 else None) for i, text in enumerate(texts)]
    toxic = [Prompt(f"t{i}", f"wreck {text}", pair=str(i) if i > 1 else None) for i, text in enumerate(texts)]
    talks = [talk(i, LONG if i >= num_talks - num_long_talks else f"answer {i}") for i in range(num_talks)]
    return RunData(
        PromptSet("seemingly_toxic", "", seeming, ""),
        PromptSet("toxic", "", toxic, ""),
        ConversationSet("general", "", talks, ""),
    )


def recipe(**refine):
    return Recipe(refine={"global_batch": 4, "max_length": 200, **refine}, data={"held_out": 0.3}, stages=["refine"])


@pytest.mark.parametrize("pairs", ["mixed", "matched"])
@pytest.mark.parametrize("data", ["builtin", "made up"])
def test_held_out_prompts_are_never_trained_on(data, pairs):
    if data == "builtin":
        of = load_recipe(None, [("stages", "[refine]"), ("refine.max_length", "1000"), ("refine.pairs", pairs)])
        sets = load_data(of)
    else:
        of, sets = recipe(pairs=pairs), made_up()
    prompts = encode_refine_prompts(of, sets, TOKENIZER)
    held_out = {tuple(row.ids) for row in prompts.held_out}
    trained, trained_pairs = set(), set()
    for step in range(60):
        for prompt, label in prompts.sampler.batch(step):
            trained.add(tuple(prompts.tokens[label, prompt.id]))
            trained_pairs.add(prompt.pair)
    assert held_out and trained and not held_out & trained
    rows = [*sets.seemingly_toxic.rows, *sets.toxic.rows]
    pair_of = {tuple(encode_prompt(TOKENIZER, row.prompt)): row.pair for row in rows}
    assert not ({pair_of[ids] for ids in held_out} - {None}) & trained_pairs  # and neither is a twin
    if pairs == "mixed":
        assert held_out | trained == set(pair_of)


def test_held_out_prompts_keep_their_label_and_pair():
    data = made_up()
    prompts = encode_refine_prompts(recipe(), data, TOKENIZER)
    row_of = {
        tuple(encode_prompt(TOKENIZER, row.prompt)): (row, label)
        for label, rows in enumerate((data.seemingly_toxic.rows, data.toxic.rows))
        for row in rows
    }
    pairs = {}
    for ids, label, pair in prompts.held_out:
        row, own_label = row_of[tuple(ids)]
        assert label == own_label
        assert pairs.setdefault(pair, row.pair or row.id) == (row.pair or row.id)
    assert len(set(pairs.values())) == len(pairs) < len(prompts.held_out)  # there are twins among them


def test_tokens_are_those_of_the_chat_template():
    data = made_up()
    prompts = encode_refine_prompts(recipe(), data, TOKENIZER)
    for label, rows in enumerate((data.seemingly_toxic.rows, data.toxic.rows)):
        for row in rows:
            assert prompts.tokens[label, row.id] == encode_prompt(TOKENIZER, row.prompt)
    general = {tuple(encode_conversation(TOKENIZER, row.messages).ids) for row in data.general.rows}
    assert {tuple(row) for row in prompts.general + prompts.held_out_general} == general


def test_tokens_of_the_template_before_prompts_are_shared():
    prompts = encode_refine_prompts(recipe(), made_up(), TOKENIZER)
    assert TOKENIZER.decode(prompts.tokens[0, "s1"][: prompts.num_shared]) == "<|im_start|>user\n"


def test_general_rows_are_trained_on_or_measured():
    prompts = encode_refine_prompts(recipe(), made_up(num_talks=10), TOKENIZER)
    assert (len(prompts.general), len(prompts.held_out_general)) == (7, 3)
    many = encode_refine_prompts(recipe(), made_up(num_talks=90), TOKENIZER)
    assert (len(many.general), len(many.held_out_general)) == (90 - DRIFT_ROWS, DRIFT_ROWS)


def test_too_long_samples_are_dropped_and_counted():
    prompts = encode_refine_prompts(recipe(), made_up(num_long=3, num_long_talks=2), TOKENIZER)
    assert len(prompts.tokens) == 18 and max(map(len, prompts.tokens.values())) <= 200
    assert len(prompts.general + prompts.held_out_general) == 8
    assert max(map(len, prompts.general + prompts.held_out_general)) <= 200
    assert prompts.notes[:3] == [
        "data.seemingly_toxic: 3 prompts longer than refine.max_length = 200 tokens left out",
        "data.toxic: 3 prompts longer than refine.max_length = 200 tokens left out",
        "data.general: 2 conversations longer than refine.max_length = 200 tokens left out of the retain term",
    ]


def test_without_long_samples_there_is_no_note():
    assert encode_refine_prompts(recipe(max_length=1000), made_up(num_long=3), TOKENIZER).notes == []


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (made_up(num_long=11), "data.seemingly_toxic"),
        (made_up(num_long_talks=10), "data.general: 0 conversations"),
        (made_up(num_talks=1), "data.general: 1 conversations"),
    ],
)
def test_too_few_remaining_rows_are_a_user_error(data, field):
    with pytest.raises(UserError, match=field):
        encode_refine_prompts(recipe(), data, TOKENIZER)


def test_the_split_depends_only_on_the_seed():
    def held_out(seed):
        prompts = encode_refine_prompts(recipe().model_copy(update={"seed": seed}), made_up(), TOKENIZER)
        return prompts.held_out, prompts.held_out_general

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)


def test_measured_prompts_are_limited_by_pair():
    rows = [HeldOut([index], label, index) for label in (0, 1) for index in range(50)]
    rows += [HeldOut([100 + index], 1, -1 - index) for index in range(30)]
    limited = limit_held_out(rows, 20, seed=0)
    counts = Counter(row.label for row in limited)
    assert counts[1] == 20 and 0 < counts[0] < 20
    twins = [{row.pair for row in limited if row.label == label and row.pair >= 0} for label in (0, 1)]
    assert twins[0] == twins[1]
    assert limited == limit_held_out(rows, 20, seed=0) != limit_held_out(rows, 20, seed=1)
    assert limit_held_out(rows, 80, seed=0) is rows
