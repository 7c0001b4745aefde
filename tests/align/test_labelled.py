"""The data of KTO as tokens: lengths and labels, the balance, and prompts with the answer of another sample."""

import pytest
from tiny import make_tokenizer

from dcr_ds.align.labelled import encode_labelled
from dcr_ds.data.records import DataSet, LabelledAnswer
from dcr_ds.errors import UserError
from dcr_ds.recipe import AlignSection

TEXTS = [("hi", "hello to you", True), ("1 + 1", "three", False), ("and?", "nothing more, thank you", True)]


def labelled(texts=TEXTS, **align):
    rows = [LabelledAnswer(p, ({"role": "user", "content": p},), answer, good) for p, answer, good in texts]
    return encode_labelled(AlignSection(**align), DataSet("preferences", "here", rows, ""), make_tokenizer())


def test_a_mismatched_row_is_a_prompt_with_the_answer_of_the_sample_before():
    data, tokenizer = labelled(), make_tokenizer()
    rows = [2, 0, 1]
    for position, (prompt, answer) in enumerate([("and?", "three"), ("hi", TEXTS[2][1]), ("1 + 1", TEXTS[0][1])]):
        encoded = data.mismatched(rows, position)
        read, said = (tokenizer.decode(ids) for ids in (encoded.ids[: encoded.prompt_tokens], encoded.ids))
        assert prompt in read and said == f"{read}{answer}<|im_end|>"


def test_a_sample_that_a_step_has_twice_is_not_read_with_its_own_answer():
    data, rows = labelled(), [2, 2, 0, 2]
    answers = [(encoded := data.mismatched(rows, i)).ids[encoded.prompt_tokens :] for i in range(4)]
    own = [sample.ids[sample.prompt_tokens :] for sample in data.samples]
    assert answers == [own[0], own[0], own[2], own[0]]


def test_a_mismatched_row_is_cut_at_the_longest_row():
    longest = max(len(sample.ids) for sample in labelled().samples)
    data = labelled([*TEXTS, ("a long question", "no", False)], max_length=longest)
    assert len(data.samples) == 4
    cut = data.mismatched([2, 3], 1)
    assert len(cut.ids) == longest and cut.num_supervised == longest - data.samples[3].prompt_tokens > 0


def test_the_balance_is_noted_with_a_weight_that_restores_it():
    data = labelled()
    assert data.counts == {"num_desirable": 2, "num_undesirable": 1}
    (note,) = data.notes
    assert note.startswith("preferences: 2 desirable + 1 undesirable answers, with their weights 2.00 to 1")
    assert "--align.kto.undesirable_weight 2 makes it 1" in note
    (note,) = labelled(kto={"undesirable_weight": 2}).notes
    assert note == "preferences: 2 desirable + 1 undesirable answers"
    (note,) = labelled(kto={"desirable_weight": 0.25}).notes
    assert "--align.kto.desirable_weight 0.5 makes it 1" in note


def test_long_conversations_are_left_out_and_both_labels_must_remain():
    longest = max(len(sample.ids) for sample in labelled().samples)
    assert "1 of 3 conversations longer than" in labelled(max_length=longest - 1).notes[0]
    with pytest.raises(UserError, match="no conversation has at most align.max_length = 3 tokens"):
        labelled(max_length=3)
    with pytest.raises(UserError, match="no undesirable answer has at most align.max_length"):
        labelled([TEXTS[0], ("1 + 1", "one and one are " * 9, False)], max_length=60)
