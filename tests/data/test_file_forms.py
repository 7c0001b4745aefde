"""The same conversations in every form give the same records."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcr_ds.data import read_conversations, read_labelled, read_preferences, read_prompts
from dcr_ds.data.shipped import FOLDER
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

ROWS = [
    {"prompt": row["prompt"], "response": row["response"]}
    for row in map(json.loads, (FOLDER / "general.jsonl").read_text(encoding="utf-8").splitlines())
]


def messages_of(row, role="role", content="content", user="user", assistant="assistant"):
    return [{role: user, content: row["prompt"]}, {role: assistant, content: row["response"]}]


def parts_of(row):
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages_of(row)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows, delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


SHAREGPT = [{"conversations": messages_of(row, "from", "value", "human", "gpt")} for row in ROWS]
CELLS = [{"messages": json.dumps(messages_of(row))} for row in ROWS]
MESSAGES = [{"messages": messages_of(row)} for row in ROWS]
PARTS = [{"messages": parts_of(row)} for row in ROWS]
ALPACA = [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in ROWS]
COMPLETION = [{"prompt": row["prompt"], "completion": row["response"]} for row in ROWS]
TRL = [{"prompt": messages_of(row)[:1], "completion": messages_of(row)[1:]} for row in ROWS]
FORMS = {
    "`prompt`, `response` (jsonl)": (".jsonl", lines(ROWS)),
    "`prompt`, `completion` (jsonl)": (".jsonl", lines(COMPLETION)),
    "`prompt`, `completion` as messages (jsonl)": (".jsonl", lines(TRL)),
    "`messages` (jsonl)": (".jsonl", lines(MESSAGES)),
    "`messages` with content parts (jsonl)": (".jsonl", lines(PARTS)),
    "`messages` as JSON in a cell (csv)": (".csv", table(CELLS, ",")),
    "ShareGPT's `conversations` (json)": (".json", json.dumps(SHAREGPT)),
    "ShareGPT's `conversations` (parquet)": (".parquet", parquet(SHAREGPT)),
    "Alpaca (json)": (".json", json.dumps(ALPACA, indent=2)),
    "an object of columns (json)": (".json", json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]})),
    "`{\"data\": [...]}` (json)": (".json", json.dumps({"data": ROWS})),
    "JSON lines named .json": (".json", lines(ROWS)),
    "a JSON array named .jsonl": (".jsonl", json.dumps(ROWS)),
    "csv": (".csv", table(ROWS, ",")),
    "csv with semicolons": (".csv", table(ROWS, ";")),
    "csv with vertical bars": (".csv", table(ROWS, "|")),
    "csv with tabs": (".csv", table(ROWS, "\t")),
    "csv with its delimiter in the first line": (".csv", "sep=;\n" + table(ROWS, ";") + ";\n;\n"),
    "csv, UTF-8 with a byte order mark": (".csv", table(ROWS, ",").encode("utf-8-sig")),
    "csv, UTF-16 with a byte order mark": (".csv", table(ROWS, ",").encode("utf-16")),
    "csv, UTF-16 without": (".csv", table(ROWS, ",").encode("utf-16-be")),
    "jsonl, UTF-16 without": (".jsonl", lines(ROWS).encode("utf-16-le")),
    "jsonl, UTF-32 with a byte order mark": (".jsonl", lines(ROWS).encode("utf-32")),
    "tsv": (".tsv", table(ROWS, "\t")),
    "tsv, gzip": (".tsv.gz", gzip.compress(table(ROWS, "\t").encode())),
    "jsonl, gzip without .gz in the name": (".jsonl", gzip.compress(lines(ROWS).encode())),
    "parquet": (".parquet", parquet(ROWS)),
}  # fmt: skip


def read(tmp_path, form, **fields):
    ending, content = FORMS[form]
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_conversations(DataSource(source=str(path), **fields), "general")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(tmp_path, form):
    data_set = read(tmp_path, form)
    assert [(row.id, row.messages) for row in data_set.rows] == [
        (f"rows-{number}", tuple(messages_of(row))) for number, row in enumerate(ROWS, 1)
    ]
    assert data_set.notes == []


def test_txt_has_one_prompt_per_line(tmp_path):
    path = tmp_path / "rows.txt"
    prompts = [" ".join(row["prompt"].split()) for row in ROWS]
    path.write_text("\n\n".join(prompts) + "\r\n", encoding="utf-8")
    prompt_set = read_prompts(DataSource(source=str(path)), "toxic")
    assert [row.prompt for row in prompt_set.rows] == prompts


def test_json_lines_named_json_with_a_damaged_first_line(write):
    path = write("c.json", '{"prompt": "zero",\n' + lines(ROWS[:3]))
    data_set = read_conversations(DataSource(source=path), "general")
    assert len(data_set.rows) == 3 and "1 of 4 conversations left out: not valid JSON" in data_set.notes[0]


def test_utf_16_of_few_ascii_characters(write):
    rows = [{"prompt": "漢字" * 40 + str(number)} for number in range(3)]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        prompt_set = read_prompts(DataSource(source=write("p.jsonl", lines(rows).encode(encoding))), "toxic")
        assert [row.prompt for row in prompt_set.rows] == [row["prompt"] for row in rows]


# no form drops a column silently

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
EXCHANGE = messages_of({"prompt": "one", "response": "1"})
FORM_ROWS = {
    "messages": {"messages": EXCHANGE},
    "ShareGPT": {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "1"}]},
    "response": {"prompt": "one", "response": "1"},
    "completion": {"prompt": "one", "completion": "1"},
    "Alpaca": {"instruction": "one", "output": "1"},
}


@pytest.mark.parametrize("row", FORM_ROWS.values(), ids=FORM_ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_system_and_history_are_used_in_every_form(write, row, ending):
    path = write(f"c.{ending}", [{**row, "system": "Be brief.", "history": [["Hello", "Good day"]]}])
    data_set = read_conversations(DataSource(source=path), "general")
    assert data_set.rows[0].messages == (SYSTEM, *EARLIER, *EXCHANGE) and data_set.notes == []


@pytest.mark.parametrize("row", FORM_ROWS.values(), ids=FORM_ROWS)
def test_other_columns_are_named_in_a_note(write, row):
    path = write("c.jsonl", [{**row, "source": "web", "persona": "a pirate"}])
    assert read_conversations(DataSource(source=path, where={"source": "web"}), "general").notes == [
        "columns that are not used: persona"
    ]


def test_a_prompt_set_uses_system_and_history(write):
    path = write("p.jsonl", [{"prompt": "one", "system": "Be brief.", "history": [["Hello", "Good day"]], "note": "x"}])
    prompt_set = read_prompts(DataSource(source=path), "toxic")
    assert prompt_set.rows[0].messages == (SYSTEM, *EARLIER, EXCHANGE[0])
    assert prompt_set.notes == ["columns that are not used: note"]


def test_conversations_that_differ_in_the_system_prompt_are_no_repeats(write):
    rows = [{"prompt": "one", "response": "1", "system": text} for text in ("Be brief.", "Be kind.", "", "Be kind.")]
    data_set = read_conversations(DataSource(source=write("c.jsonl", rows)), "general")
    assert [row.messages[0]["content"] for row in data_set.rows] == ["Be brief.", "Be kind.", "one"]
    assert data_set.notes == ["1 of 4 conversations left out: repeated (line 4)"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [EXCHANGE[0], {"role": "tool", "content": "3"}]}, "2 of 'messages' has the role 'tool', the use"),
        (
            {"messages": [*EXCHANGE[:1], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "message 2 of 'messages' uses a tool ('tool_calls'); only text is trained on; remove the row",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, *EXCHANGE[1:]]},
            "message 1 of 'messages' contains a part that is not text (image_url)",
        ),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "the role 'function_call', the use of a tool"),
        ({"messages": EXCHANGE, "tools": [{"name": "search"}]}, "'tools' describes tools"),
        ({"messages": [SYSTEM, *EXCHANGE], "system": "Be loud."}, "'system' and the first message are different"),
        ({"prompt": "one", "response": "1", "history": "Hello"}, "'history' must be a list of pairs"),
        ({"prompt": "one", "response": "1", "history": [["Hello"]]}, "'history' must be a list of pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_with_the_reason(write, error_of, row, expected):
    source = DataSource(source=write("c.jsonl", [{"messages": EXCHANGE}, row]), max_bad_share=0)
    if "messages" not in row:
        source = DataSource(source=write("c.jsonl", [row]))
    message = error_of(read_conversations, source, "general")
    assert expected in message and f", line {2 if 'messages' in row else 1}: " in message


@pytest.mark.parametrize(
    ("prompt", "noted"),
    [
        ("Human: How do I kill a process?\n\nAssistant:", "look like transcripts"),
        ("### Instruction:\nAdd.\n\n### Response:", "look like transcripts"),
        ("Q: How do I kill a process?\nA:", "look like transcripts"),
        ("USER: How do I kill a process? ASSISTANT:", "look like transcripts"),
        ("Below is an instruction.\n\n### Instruction:\nAdd.\n\n### Response:", "look like transcripts"),
        ("<\uff5cUser\uff5c>Hello<\uff5cAssistant\uff5c>", "markup of a chat template"),
        ("[INST] How do I kill a process? [/INST]", "markup of a chat template"),
        ("<|im_start|>user\nHello<|im_end|>", "markup of a chat template"),
        ("Write a dialogue: Human: hello", None),
        ("What does [1] mean?", None),
    ],
)
def test_transcripts_and_markup_in_most_prompts_are_noted(write, prompt, noted):
    rows = [{"prompt": f"{prompt} {number}"} for number in range(3)] + [{"prompt": "one"}, {"prompt": "two"}]
    notes = read_prompts(DataSource(source=write("p.jsonl", rows)), "toxic").notes
    assert [note.startswith("3 of 5 prompts") and noted in note for note in notes] == ([True] if noted else [])
    assert read_prompts(DataSource(source=write("p.jsonl", rows[2:])), "toxic").notes == []


@pytest.mark.parametrize("before", ["How do I kill time? ", "\n\nHuman: Hello\n\nAssistant: "])
def test_answers_that_hold_the_prompt_are_noted(write, before):
    """Data of reward models has whole texts as chosen and rejected, next to a column of prompts."""
    rows = [
        {"prompt": "How do I kill time?", "chosen": f"{before}Read {n}.", "rejected": f"{before}No {n}."}
        for n in range(3)
    ]
    notes = read_preferences(DataSource(source=write("p.jsonl", rows))).notes
    assert len(notes) == 1 and notes[0].startswith("3 of 3 pairs have answers that begin with the prompt")
    plain = [{name: text.removeprefix(before) for name, text in row.items()} for row in rows]
    assert read_preferences(DataSource(source=write("q.jsonl", plain))).notes == []


def test_quotes_that_csv_does_not_read_as_such_are_noted(write):
    file = write("p.csv", 'id, prompt\n1, "How do I kill time?"\n2, "Say so"\n')
    assert read_prompts(DataSource(source=file), "toxic").notes[0].startswith("2 of 2 prompts stand in quotation marks")


def test_tabs_in_a_csv_whose_first_column_has_no_name(write):
    read = read_prompts(DataSource(source=write("p.csv", "\tprompt\n0\tHow do I kill time?\n")), "toxic")
    assert [row.prompt for row in read.rows] == ["How do I kill time?"]


def test_preferences_of_sharegpt_use_system_and_history(write):
    row = {
        "conversations": [{"from": "human", "value": "one"}],
        "chosen": {"from": "gpt", "value": "1"},
        "rejected": {"from": "gpt", "value": "2"},
        "system": "Be brief.",
        "history": [["Hello", "Good day"]],
    }
    source = DataSource(source=write("p.jsonl", [row]), columns={"prompt": "conversations"})
    (pair,) = read_preferences(source).rows
    assert pair.context == (SYSTEM, *EARLIER, EXCHANGE[0]) and (pair.chosen, pair.rejected) == ("1", "2")


KEYS = ["messages", "conversations", "prompt", "response", "completion", "chosen", "rejected", "system", "history"]
KEYS += ["tools", "instruction", "input", "output", "role", "content", "from", "value", "type", "text", "id", "label"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "user", "gpt", "[]", "[1]", "\ud800"]),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
    max_leaves=6,
)
PAIR = {"prompt": "one", "chosen": "1", "rejected": "2", "history": [["Hello", "Good day"]]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from([*FORM_ROWS.values(), PAIR]),
    changes=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), max_size=3),
)
def test_any_row_gives_records_or_a_user_error(write, form, changes):
    form = {"label": True, **form}
    source = DataSource(source=write("c.jsonl", [form, *({**form, **change} for change in changes)]))
    readers = (read_conversations, read_prompts, read_preferences, read_labelled)
    for read_set, name in zip(readers, ("general", "toxic", "preferences", "preferences"), strict=True):
        try:
            for row in read_set(source, name).rows:
                assert row.prompt.encode()
        except UserError as error:
            str(error).encode()
