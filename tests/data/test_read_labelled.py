"""Labelled answers: every form of conversations with a label, pairs as two answers, and errors."""

import pytest

from dcr_ds.data import read_labelled, read_preferences
from dcr_ds.recipe import DataSource

USER = {"role": "user", "content": "question"}
GOOD = {"role": "assistant", "content": "good"}
ROW = {"prompt": "question", "completion": "good", "label": True}
BAD_ROW = {"prompt": "question", "completion": "bad", "label": False}


def read(path, **fields):
    return read_labelled(DataSource(source=path, **{"max_bad_share": 0, **fields}))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_files(write, ending):
    first, second = read(write(f"k.{ending}", [ROW, BAD_ROW])).rows
    assert (first.id, first.context, first.answer, first.desirable, first.prompt) == (
        *("k-1", (USER,), "good", True),
        "question",
    )
    assert (second.answer, second.desirable) == ("bad", False)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "question", "response": "good"},
        {"prompt": [USER], "completion": [GOOD]},
        {"messages": [USER, GOOD]},
        {"conversations": [{"from": "human", "value": "question"}, {"from": "gpt", "value": "good"}]},
        {"instruction": "question", "output": "good"},
    ],
    ids=lambda row: "+".join(row),
)
def test_forms(write, row):
    answers = read(write("k.jsonl", [{**row, "label": True}, {**row, "label": False}])).rows
    assert [(answer.context, answer.answer, answer.desirable) for answer in answers] == [
        ((USER,), "good", True),
        ((USER,), "good", False),
    ]


@pytest.mark.parametrize(
    ("yes", "no"),
    [(True, False), (1, 0), (1.0, -1.0), ("True", "False"), ("yes", "no"), ("chosen", "rejected"),
     ("Desirable", " undesirable "), ("thumbs up", "thumbs down")],
)  # fmt: skip
def test_spellings_of_labels(write, yes, no):
    path = write("k.jsonl", [{**ROW, "wanted": yes}, {**BAD_ROW, "wanted": no}])
    assert [answer.desirable for answer in read(path, columns={"label": "wanted"}).rows] == [True, False]


def test_a_pair_is_a_desirable_and_an_undesirable_answer(write):
    path = write("p.jsonl", [{"id": "a", "prompt": "question", "chosen": "good", "rejected": "bad", "category": "c"}])
    rows = read(path).rows
    assert [(row.id, row.answer, row.desirable, row.category) for row in rows] == [
        ("a/chosen", "good", True, "c"),
        ("a/rejected", "bad", False, "c"),
    ]


def test_the_builtin_preferences_in_the_form_of_kto():
    pairs, labelled = read_preferences(DataSource()), read_labelled(DataSource())
    assert [answer.answer for answer in labelled.rows if answer.desirable] == [pair.chosen for pair in pairs.rows]
    assert [answer.answer for answer in labelled.rows if not answer.desirable] == [pair.rejected for pair in pairs.rows]
    assert labelled.sha256 != pairs.sha256


def test_repeated_answers_are_left_out_and_counted_but_not_those_with_the_other_label(write):
    read_set = read(write("k.jsonl", [ROW, {**ROW, "label": False}, {**ROW, "completion": "good "}]))
    assert len(read_set.rows) == 2
    assert read_set.notes == [
        "1 of 3 rows left out: repeated (line 3)",
        "1 answers are labelled both desirable and undesirable",
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [ROW, {**BAD_ROW, "label": "maybe"}],
            ", line 2: 'label' is 'maybe', which is no label; use true or false",
        ),
        ([{**ROW, "label": 0.7}, BAD_ROW], ", line 1: 'label' is '0.7', which is no label"),
        ([ROW, {**BAD_ROW, "label": None}], ", line 2: 'label' is missing; it says whether the answer is desirable"),
        ([ROW, {**BAD_ROW, "completion": " "}], ", line 2: the answer in 'completion' is empty; fill it in or"),
        ([{"messages": [USER, {**GOOD, "content": ""}], "label": 1}], ", line 1: the answer in 'messages' is empty"),
        (
            [ROW, {**ROW, "prompt": "b"}],
            ": all 2 answers are desirable; KTO needs both labels: add undesirable",
        ),
        ([BAD_ROW], ": all 1 answers are undesirable; KTO needs both labels: add desirable answers"),
        (
            [{"prompt": "a", "completion": "b"}],
            ": no column 'label'; columns: prompt, completion. Map the",
        ),
        ([{"prompt": "a", "label": 1}], ": no conversations in the columns prompt, label. Required: messages;"),
    ],
)
def test_bad_rows_are_errors(write, error_of, rows, expected):
    path = write("k.jsonl", rows)
    assert f"data.preferences: {path}{expected}" in error_of(read, path)
