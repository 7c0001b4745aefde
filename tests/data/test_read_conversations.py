"""Conversations: three forms, empty answers, duplicates, and errors."""

import json

import pytest

from dcr_ds.data import read_conversations
from dcr_ds.recipe import DataSource

USER = {"role": "user", "content": "question"}
ASSISTANT = {"role": "assistant", "content": "answer"}
SYSTEM = {"role": "system", "content": "be kind"}


def read(path, **fields):
    return read_conversations(DataSource(source=path, **{"max_bad_share": 0, **fields}), "general")


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "jsonl.gz"])
def test_messages(write, ending):
    rows = [{"id": "a", "messages": [SYSTEM, USER, ASSISTANT, {**USER, "content": "more"}, ASSISTANT]}]
    (conversation,) = read(write(f"c.{ending}", rows)).rows
    assert conversation.messages == tuple(rows[0]["messages"])
    assert (conversation.id, conversation.prompt, conversation.response) == ("a", "more", "answer")


def test_empty_system_messages_are_dropped(write):
    messages = [{"role": "system", "content": ""}, USER, ASSISTANT]
    assert read(write("c.jsonl", [{"messages": messages}])).rows[0].messages == (USER, ASSISTANT)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_keys_of_messages_that_are_not_used_are_noted_once(write, ending):
    answer = {**ASSISTANT, "reasoning_content": "hm", "weight": 1, "tool_calls": None}
    rows = [{"messages": [{**USER, "content": text}, answer]} for text in "ab"]
    if ending == "csv":
        rows = [{"messages": json.dumps(row["messages"])} for row in rows]
    conversations = read(write(f"c.{ending}", rows))
    assert conversations.rows[0].messages == ({**USER, "content": "a"}, ASSISTANT)
    assert conversations.notes == ["keys of messages that are not used: reasoning_content, weight"]


def test_only_an_answer_of_weight_0_is_refused(write, error_of):
    ignored = {**ASSISTANT, "weight": 0}
    path = write("c.jsonl", [{"messages": [USER, ignored, USER, ASSISTANT]}])
    assert len(read(path).rows) == 1
    path = write("c.jsonl", [{"messages": [USER, ASSISTANT, USER, ignored]}])
    assert "line 1: message 4 of 'messages' has the weight 0, so the answer is not meant" in error_of(read, path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_prompt_and_response(write, ending):
    path = write(f"c.{ending}", [{"prompt": "question", "response": "answer", "category": "x"}])
    (conversation,) = read(path).rows
    assert conversation.messages == (USER, ASSISTANT)
    assert (conversation.id, conversation.category) == ("c-1", "x")


def test_alpaca(write):
    rows = [
        {"instruction": "Add.", "input": "  1 + 1\n", "output": "2"},
        {"instruction": "Name a tree.", "input": "", "output": "Oak"},
        {"instruction": "Name a bird.", "input": "<no input>", "output": "Owl"},
        {"instruction": "Name a fish.", "input": None, "output": "Eel"},
    ]
    conversation_set = read(write("alpaca.json", rows))
    prompts = ["Add.\n\n  1 + 1\n", "Name a tree.", "Name a bird.", "Name a fish."]
    assert [row.prompt for row in conversation_set.rows] == prompts
    assert conversation_set.rows[0].response == "2"


def test_alpaca_without_an_input_column(write):
    rows = [{"instruction": "Name a tree.", "output": "Oak"}]
    assert read(write("a.json", rows)).rows[0].prompt == "Name a tree."


def test_mapped_columns_choose_the_form(write):
    rows = [{"messages": "a link", "prompt": "question", "completion": "answer"}]
    path = write("c.jsonl", rows)
    assert read(path, columns={"response": "completion"}).rows[0].messages == (USER, ASSISTANT)


def test_duplicates_and_empty_answers_are_dropped_and_counted(write):
    rows = [("a", "1"), ("a", " 1"), ("a", "2"), ("b", ""), ("c", "  "), ("d", "\u200b\n")]
    conversation_set = read(write("c.jsonl", [{"prompt": p, "response": r} for p, r in rows]))
    assert [(row.prompt, row.response) for row in conversation_set.rows] == [("a", "1"), ("a", "2")]
    assert conversation_set.notes == [
        "3 of 6 conversations left out: empty answer (line 4, line 5, line 6)",
        "1 of 6 conversations left out: repeated (line 2)",
    ]


def test_the_same_exchange_after_other_turns_is_not_a_duplicate(write):
    turns = [[USER, ASSISTANT], [{**USER, "content": "hello"}, ASSISTANT, USER, ASSISTANT]]
    assert len(read(write("c.jsonl", [{"messages": messages} for messages in turns])).rows) == 2


def test_rows_are_sampled_after_dropping(write):
    rows = [{"prompt": str(number % 10), "response": "x"} for number in range(30)]
    assert len({row.prompt for row in read(write("c.jsonl", rows), rows=10).rows}) == 10


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("text", "must be a list"),
        (None, "must be a list"),
        ([], "must end with the assistant's answer"),
        ([USER], "must end with the assistant's answer"),
        ([SYSTEM], "must end with the assistant's answer"),
        ([USER, USER, ASSISTANT], "message 2 of 'messages' has the role 'user', expected 'assistant'"),
        ([ASSISTANT], "message 1 of 'messages' has the role 'assistant', expected 'user'"),
        ([SYSTEM, USER, SYSTEM], "message 3 of 'messages' has the role 'system'"),
        ([USER, {"role": "tool", "content": "x"}], "message 2 of 'messages' has the role 'tool'"),
        ([{"role": "user", "content": " "}, ASSISTANT], "message 1 of 'messages' is empty"),
        ([{"speaker": "human", "text": "x"}, ASSISTANT], "message 1 of 'messages' must have the form"),
        ([{"role": "user", "content": 3}, ASSISTANT], "message 1 of 'messages' must have the form"),
    ],
)
def test_wrong_messages_are_named(write, error_of, messages, expected):
    path = write("c.jsonl", [{"messages": [USER, ASSISTANT]}, {"messages": messages}])
    message = error_of(read, path)
    assert f"data.general: {path}, line 2: " in message and expected in message


def test_unknown_columns_list_the_supported_forms(write, error_of):
    path = write("c.jsonl", [{"question": "x", "answer": "y"}])
    message = error_of(read, path)
    assert "question, answer" in message and "instruction and output" in message
    assert "for example with --data.general.columns.prompt NAME --data.general.columns.response NAME" in message
    (row,) = read(path, columns={"prompt": "question", "response": "answer"}).rows
    assert (row.prompt, row.response) == ("x", "y")


def test_preferences_are_no_conversations(write, error_of):
    message = error_of(read, write("c.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}]))
    assert "are preferences: name them in data.preferences" in message


def test_incomplete_columns_name_the_missing_one(write, error_of):
    path = write("c.jsonl", [{"question": "x", "answer": "y"}])
    with_prompt = DataSource(source=path, columns={"prompt": "question"})
    assert "--data.general.columns.response NAME" in error_of(read_conversations, with_prompt, "general")


def test_all_answers_empty(write, error_of):
    message = error_of(read, write("c.jsonl", [{"prompt": "x", "response": ""}]))
    assert "no usable conversations: 1 of 1 conversations left out: empty answer" in message


def test_missing_answer(write, error_of):
    path = write("c.jsonl", [{"prompt": "x", "response": "y"}, {"prompt": "x"}])
    assert f"{path}, line 2: 'response' is missing" in error_of(read, path)


def test_first_human_turn_is_refused(write, error_of):
    source = DataSource(source=write("c.jsonl", [{"prompt": "x", "response": "y"}]), first_human_turn=True)
    assert "first_human_turn applies to prompt sets only" in error_of(read_conversations, source, "general")
