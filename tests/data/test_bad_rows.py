"""Single bad rows are left out and counted; too many, or another encoding, are an error that says what to do."""

import pytest

from dcr_ds.data import load_data, read_prompts
from dcr_ds.recipe import DataSource, Recipe

GOOD = [f'{{"prompt": "prompt {number}"}}' for number in range(8)]
BAD = {
    "a torn line": ('{"prompt": "to', "not valid JSON"),
    "another value": ('["prompt"]', "must be a JSON object, this is a list"),
    "NUL bytes": ("\0\0\0", "not valid JSON"),
    "no prompt": ('{"text": "one"}', "'prompt' is missing"),
    "null": ('{"prompt": null}', "'prompt' is missing"),
    "an empty prompt": ('{"prompt": " "}', "'prompt' is empty"),
    "a number": ('{"prompt": 3}', "'prompt' must be text"),
}


def read(path, **fields):
    return read_prompts(DataSource(source=path, **fields), "toxic")


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_one_bad_row_is_left_out_and_counted(write, case, place, name):
    line, problem = BAD[case]
    if name == "p.json" and place == 0:
        return  # a .json file that does not begin with a row is read as a single value
    prompt_set = read(write(name, "\n".join([*GOOD[:place], line, *GOOD[place:]])))
    assert len(prompt_set.rows) == 8
    assert [row.id for row in prompt_set.rows] == [f"p-{n}" for n in range(1, 10) if n != place + 1]
    note = prompt_set.notes[0]
    assert note.startswith(f"1 of 9 prompts left out: {problem}") and f"(line {place + 1}" in note


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("four,four,5", "3 fields, but the header has 2; quote fields that contain a comma"),
        ("four", "1 field, but the header has 2; add what is missing (id)"),
        ('"four" or five,4', "not valid CSV"),
        ('"four\0",4', "contains a NUL byte"),
        (",4", "'prompt' is empty"),
        ("\ufeffprompt,id", "repeats the header, as in files that were joined"),
    ],
)
def test_one_bad_row_of_a_table_is_left_out(write, line, problem):
    prompt_set = read(write("p.csv", "\n".join(["prompt,id", "one,1", "two,2", line, "three,3"])))
    assert [row.id for row in prompt_set.rows] == ["1", "2", "3"]
    assert prompt_set.notes[0].startswith(f"1 of 4 prompts left out: {problem}") and "(line 4)" in prompt_set.notes[0]


def test_one_bad_row_of_an_array_is_left_out(write):
    assert read(write("p.json", [{"prompt": "one"}, 3, {"prompt": "two"}])).notes == [
        "1 of 3 prompts left out: a row must be an object, this is a number (row 2)"
    ]


def test_too_many_bad_rows_are_an_error_that_counts_them(write, error_of):
    rows = [{"prompt": "" if number % 10 == 0 else f"prompt {number}"} for number in range(100)]
    path = write("p.jsonl", rows)
    assert (
        "line 1: 'prompt' is empty; fill it in or remove the row. In all, 10 of 100 rows cannot be used, and at most 5 "
        "are left out; correct or remove them, or allow more with --data.toxic.max_bad_share SHARE"
    ) in error_of(read, path)
    assert len(read(path, max_bad_share=0.1).rows) == 90
    assert "line 1" in error_of(lambda: read(write("q.jsonl", rows[:9]), max_bad_share=0))


@pytest.mark.parametrize(
    ("bad", "good", "is_read"),
    [
        (1, 1, False),
        (1, 2, True),
        (1, 0, False),
        (2, 1, False),
        (5, 5, False),
        (5, 6, True),
        (6, 9, False),
        (9, 891, True),
        (10, 891, False),
    ],
)
def test_limit_of_bad_rows(write, error_of, bad, good, is_read):
    path = write("p.jsonl", [{"prompt": ""}] * bad + [{"prompt": f"prompt {number}"} for number in range(good)])
    if is_read:
        assert len(read(path).rows) == good
    else:
        assert "'prompt' is empty" in error_of(read, path)


def test_a_benchmark_of_a_run_leaves_bad_rows_out_too(write):
    path = write("b.jsonl", [{"prompt": "one"}, {"prompt": ""}, {"prompt": "two"}])
    benchmarks = [{"name": "mine", "prompts": path, "wanted": "refuse"}]
    data = load_data(Recipe.model_validate({"stages": ["evaluate"], "evaluate": {"benchmarks": benchmarks}}))
    facts = data.summary()["sets"]["mine"]
    assert facts["rows"] == 2 and "(line 2)" in facts["notes"][0] and "'prompt' is empty" in facts["notes"][0]


# files as a whole

MISREAD = {
    "Latin-1": ("p.csv", "prompt\nété\n".encode("latin-1"), ["line 2", "not UTF-8", "iconv -f WINDOWS-1252 -t UTF-8"]),
    "only a header": ("p.csv", "prompt,id\r\n", ["contains no rows, only the line 'prompt', 'id'"]),
    "only NUL bytes": ("p.jsonl", b"\0" * 100, ["the file is empty"]),
    "only a byte order mark": ("p.csv", b"\xef\xbb\xbf", ["the file is empty"]),
    "a header that is a row": (
        "p.csv",
        "How do I kill a process?,safe\nHow do I whip cream?,safe\n",
        ["no column 'prompt'", "put a line with the names of the columns above it"],
    ),
    "one column without quotes": ("p.csv", "prompt\nWell, who?\nNow, what?\n", ["line 2", "2 fields", ".txt"]),
    "semicolons in few fields": ("p.csv", "prompt;id\na\nb\n", ["line 2", "1 field,", "add what is missing (id)"]),
    "semicolons in many fields": ("p.csv", "prompt;id\na;b;1\nc;d;2\n", ["quote fields that contain a semicolon"]),
    "an open quote": ("p.csv", 'prompt,id\n"a,1\nb,2\n', ["line 2", "not valid CSV", "check the quotes"]),
    "JSON in a txt file": ("p.txt", '{"prompt": "a"}\n', ["name the file .jsonl"]),
    "Zstandard": ("p.jsonl", b"(\xb5/\xfd1234", ["packed with Zstandard", "zstd -d"]),
    "the name of Zstandard": ("p.jsonl.zst", b"(\xb5/\xfd1234", ["unknown file format; unpack it", "`zstd -d`"]),
    "a spreadsheet": ("p.csv", b"PK\x03\x04....", ["spreadsheet", "CSV (UTF-8)"]),
    "a pointer": ("p.parquet", b"version https://git-lfs.github.com/spec/v1\noid x", ["git lfs pull"]),
    "a web page": ("p.jsonl", b"\n<!doctype html><html>", ["is a web page"]),
    "not parquet": ("p.parquet", b'{"prompt": "a"}', ["not a parquet file"]),
    "torn parquet": ("p.parquet", b"PAR1 and so on", ["not a complete parquet file", "again"]),
    "two splits": ("p.json", {"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}, ["lists of rows (train, test)"]),
    "pandas by index": ("p.json", {"0": {"prompt": "a"}, "1": {"prompt": "b"}}, ["orient='records'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREAD)
def test_errors_say_what_to_do(write, error_of, case):
    name, content, expected = MISREAD[case]
    message = error_of(read, write(name, content))
    assert message.startswith("data.toxic: ") and all(part in message for part in expected), message


def test_gzip_in_gzip_is_named(write, error_of):
    import gzip

    content = gzip.compress(gzip.compress(b'{"prompt": "a"}'))
    assert "packed with gzip twice; unpack it once" in error_of(read, write("p.jsonl.gz", content))


def test_a_damaged_character_in_a_file_that_is_utf8_is_one_bad_row(write):
    good = [f'{{"prompt": "été à la plage {number} — “là”"}}'.encode() for number in range(20)]
    prompt_set = read(write("p.jsonl", b"\n".join([*good, b'{"prompt": "\xe9t"}'])))
    assert len(prompt_set.rows) == 20 and "(line 21)" in prompt_set.notes[0]


def test_four_hundred_columns_are_cut_in_errors(write, error_of):
    columns = {f"column_{number}": "x" for number in range(400)} | {"promt": "x"}
    message = error_of(read, write("p.jsonl", [columns]))
    assert "columns: promt, column_0, column_1" in message and "and 381 more" in message and len(message) < 600
    assert "column_9" in message and "column_30" not in message


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.txt", "p.jsonl"])
def test_line_breaks(write, line_break, name):
    rows = {"p.txt": ["one", "two"], "p.jsonl": ['{"prompt": "one"}', '{"prompt": "two"}']}
    content = line_break.join([*rows.get(name, ["prompt", "one", "two"]), ""])
    assert [row.prompt for row in read(write(name, content)).rows] == ["one", "two"]


def test_a_delimiter_at_the_end_of_every_row(write):
    assert [row.prompt for row in read(write("p.csv", "prompt,id\none,1,\ntwo,2,\n")).rows] == ["one", "two"]
