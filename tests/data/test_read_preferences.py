"""Preferences: three forms, dropped and counted pairs, and errors."""

import pytest

from dcr_ds.data import read_preferences
from dcr_ds.recipe import DataSource

USER = {"role": "user", "content": "question"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
ROW = {"prompt": "question", "chosen": "good", "rejected": "bad"}
DIALOGUE = "\n\nHuman: one\n\nAssistant: 1\n\nHuman: two\n\nAssistant:"


def read(path, **fields):
    return read_preferences(DataSource(source=path, **{"max_bad_share": 0, **fields}))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_texts(write, ending):
    (row,) = read(write(f"p.{ending}", [ROW])).rows
    assert (row.id, row.context, row.chosen, row.rejected, row.prompt) == ("p-1", (USER,), "good", "bad", "question")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "question", "chosen": [GOOD], "rejected": "bad"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "of another make", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "conversations": [{"from": "human", "value": "question"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"instruction": "question", "input": "", "chosen": "good", "rejected": "bad"},
    ],
    ids=["messages", "mixed", "conversations", "conversations with a prompt", "ShareGPT's", "Alpaca's"],
)
def test_messages(write, row):
    (preference,) = read(write("p.jsonl", [row])).rows
    assert (preference.context, preference.chosen, preference.rejected) == ((USER,), "good", "bad")


def test_the_input_of_an_instruction_belongs_to_the_prompt(write):
    path = write("p.jsonl", [{"instruction": "question", "input": "more", "chosen": "good", "rejected": "bad"}])
    assert read(path).rows[0].prompt == "question\n\nmore"


def test_a_context_of_many_turns_is_kept(write):
    context = [{"role": "system", "content": "be kind"}, USER, GOOD, {**USER, "content": "more"}]
    (preference,) = read(write("p.jsonl", [{**ROW, "prompt": context}])).rows
    assert preference.context == tuple(context) and preference.prompt == "more"


def test_transcripts_of_hh_rlhf(write):
    path = write("hh.jsonl", [{"chosen": f"{DIALOGUE} good\n\nand more", "rejected": f"{DIALOGUE} bad"}])
    (preference,) = read(path).rows
    assert [message["content"] for message in preference.context] == ["one", "1", "two"]
    assert [message["role"] for message in preference.context] == ["user", "assistant", "user"]
    assert (preference.chosen, preference.rejected) == ("good\n\nand more", "bad")


def test_columns_are_mapped(write):
    path = write("p.jsonl", [{"question": "question", "better": "good", "worse": "bad"}])
    mapping = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert read(path, columns=mapping).rows[0].chosen == "good"


def test_pairs_without_a_preference_are_dropped_and_counted(write):
    rows = [
        {"chosen": f"{DIALOGUE} good", "rejected": f"{DIALOGUE} bad"},
        {"chosen": f"{DIALOGUE} good", "rejected": f"{DIALOGUE} bad"},
        {"chosen": f"{DIALOGUE} good", "rejected": f"{DIALOGUE}"},
        {"chosen": f"{DIALOGUE} good", "rejected": "\n\nHuman: else\n\nAssistant: bad"},
        {"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    ]
    preferences = read(write("hh.jsonl", rows))
    assert len(preferences.rows) == 1
    assert preferences.notes == [
        "1 of 5 pairs left out: empty answer (line 3)",
        "1 of 5 pairs left out: the conversations differ before the last answer (line 4)",
        "1 of 5 pairs left out: not a dialogue in which Human and Assistant take turns (line 5)",
        "1 of 5 pairs left out: repeated (line 2)",
    ]


def test_pairs_that_contradict_each_other_are_noted(write):
    rows = [ROW, {**ROW, "chosen": "bad", "rejected": "good"}, {**ROW, "rejected": "worse"}]
    preferences = read(write("p.jsonl", rows))
    assert len(preferences.rows) == 3
    assert preferences.notes == ["1 pairs also occur with chosen and rejected exchanged"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "a", "completion": "b", "label": True}], ": rows of single answers with a label are for KTO"),
        ([{**ROW, "chosen": {**GOOD, "weight": 0}}], ", line 1: message 2 of 'chosen' has the weight 0"),
        (
            [ROW, {**ROW, "rejected": " good\n"}, {**ROW, "rejected": "good"}],
            ", line 2: chosen and rejected are the same answer; correct or remove the row. In all, 2 of 3 rows cannot",
        ),
        ([{"prompt": "a", "chosen": "b"}], ": no column 'rejected'"),
        ([{**ROW, "rejected": ""}], ": no usable pairs: 1 of 1 pairs left out: empty answer"),
        ([{**ROW, "prompt": [USER, GOOD]}], ", line 1: 'prompt' must end with the user's message"),
        ([{**ROW, "prompt": [{**USER, "content": " "}]}], ", line 1: message 1 of 'prompt' is empty"),
        ([{"chosen": "good", "rejected": "bad"}], ", line 1: 'chosen' must be a transcript that begins with"),
        ([{"chosen": [GOOD], "rejected": [BAD]}], ", line 1: 'chosen' is an answer without a prompt"),
        ([{"chosen": [USER, USER], "rejected": [USER, BAD]}], ", line 1: message 2 of 'chosen' has the role 'user'"),
        ([{**ROW, "chosen": 3}], ", line 1: 'chosen' must be text"),
    ],
)
def test_bad_rows_are_errors(write, error_of, rows, expected):
    path = write("p.jsonl", rows)
    assert f"data.preferences: {path}{expected}" in error_of(read, path)
