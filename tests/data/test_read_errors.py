"""Errors in a data file give a single message with path, line or row, column, and what to do."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcr_ds.data import read_conversations, read_prompts
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource


def read(path, name="toxic", field=None, **fields):
    return read_prompts(DataSource(source=path, **{"max_bad_share": 0, **fields}), name, field)


def error(error_of, path, **fields):
    message = error_of(lambda: read(path, **fields))
    assert message.startswith("data.toxic: ") and "Traceback" not in message
    return message


BROKEN = {
    "empty file": ("p.jsonl", b"", ["is empty"]),
    "only blank lines": ("p.jsonl", b"\n \n", ["is empty"]),
    "only a header": ("p.csv", b"prompt,label\n", ["contains no rows"]),
    "no rows": ("p.json", b"[]", ["contains no rows"]),
    "no rows in parquet": ("p.parquet", [], ["contains no rows"]),
    "not UTF-8": (
        "p.jsonl",
        b'{"prompt": "a"}\n{"prompt": "\xe9t\xe9"}\n',
        ["line 2", "0xe9", "UTF-8", "iconv"],
    ),
    "broken line": (
        "p.jsonl",
        b'{"prompt": "a"}\n{"prompt": "b"\n{"prompt": "c"}\n',
        ["line 2", "not valid JSON"],
    ),
    "no object": (
        "p.jsonl",
        b'{"prompt": "a"}\n["b"]\n',
        ["line 2", "a JSON object", "a list"],
    ),
    "broken JSON": (
        "p.json",
        b'[{"prompt": "a"},\n {"prompt" "b"}]',
        ["line 2, column 12", "not valid JSON"],
    ),
    "deep JSON": ("p.json", b"[" * 100_000, ["line 1", "cannot be parsed as JSON"]),
    "endless number": (
        "p.jsonl",
        b'{"prompt": ' + b"1" * 5000 + b"}",
        ["line 1", "cannot be parsed as JSON"],
    ),
    "plain strings": ("p.json", ["a", "b"], ["row 1", "array of plain strings", '{"prompt": [...]}']),
    "mixed rows": ("p.json", [{"prompt": "a"}, 3], ["row 2", "must be an object", "a number"]),
    "a scalar": ("p.json", 3, ["array of objects", "a number"]),
    "a column that is no list": ("p.json", {"prompt": ["a"], "n": 3}, ["must contain lists", "'n' is a number"]),
    "uneven columns": (
        "p.json",
        {"prompt": ["a", "b"], "n": [3]},
        ["differ in length", "'prompt' has 2", "'n' has 1"],
    ),
    "too many fields": (
        "p.csv",
        'prompt,id\n"a\nb",1\nHello, you,2\n',
        ["line 4", "3 fields", "has 2", "quote fields"],
    ),
    "too few fields": (
        "p.csv",
        "prompt,id\na\n",
        ["line 2", "1 field,", "has 2", "what is missing (id)", "line break"],
    ),
    "open quote": ("p.csv", 'prompt,id\n"a,1\nb,2\n', ["not valid CSV", "line"]),
    "two columns of one name": ("p.csv", "prompt,prompt\na,b\n", ["line 1", "two columns", "'prompt'"]),
    "missing column": (
        "p.csv",
        "text,id\na,1\n",
        ["no column 'prompt'", "text, id", "--data.toxic.columns.prompt NAME"],
    ),
    "empty prompt": ("p.csv", 'prompt,id\na,1\n" ",2\n', ["line 3", "'prompt' is empty"]),
    "missing prompt": ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', ["line 2", "'prompt' is missing"]),
    "null prompt": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": null}\n', ["line 2", "'prompt' is missing"]),
    "number for a prompt": ("p.jsonl", b'{"prompt": 3}', ["line 1", "'prompt' must be text", "a number"]),
    "list for a label": (
        "p.jsonl",
        b'{"prompt": "a", "label": "x"}\n{"prompt": "b", "label": [1]}',
        ["line 2", "'label' must be text", "a list"],
    ),
    "unpaired surrogate": ("p.jsonl", b'{"prompt": "a \\ud83d b"}', ["line 1", "\\ud83d", "an unpaired surrogate"]),
    "doubled id": ("p.csv", "prompt,id\na,7\nb,7\n", ["line 3", "the id '7'", "line 2", "columns.id NAME"]),
    "only one class": (
        "p.csv",
        "prompt,label\na,seemingly_toxic\n",
        ["contains only one class", "none is 'toxic'"],
    ),
    "a header in txt": ("p.txt", "id,prompt\n1,a\n", ["line 1", "this one is a header", ".csv"]),
    "one key twice": (
        "p.jsonl",
        b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n',
        ["line 2", "'prompt' is there twice"],
    ),
    "one column twice": ("p.json", b'{"prompt": ["a"], "prompt": ["b"]}', ["'prompt' is there twice"]),
    "only zero-width characters": ("p.csv", "prompt,id\n\u200b\ufeff,1\n", ["line 2", "'prompt' is empty"]),
    "messages as Python prints them": (
        "p.csv",
        "prompt\n\"[{'role': 'user', 'content': 'a'}]\"\n",
        ["line 2", "as Python prints it", "json.dumps"],
    ),
    "a label of no class": (
        "p.csv",
        "prompt,label\na,toxic\nb,seemingly toxic\nc,harmless\n",
        ["line 4", "'harmless'", "seemingly_toxic or toxic"],
    ),
    "no gzip": ("p.jsonl.gz", b'{"prompt": "a"}', ["not a complete gzip file", "again"]),
    "half a gzip": ("p.csv.gz", gzip.compress(b"prompt\n" + b"abc\n" * 999)[:-20], ["not a complete gzip file"]),
    "gzip of nothing": ("p.csv.gz", gzip.compress(b""), ["is empty"]),
    "no parquet": ("p.parquet", b"PAR1 but not really PAR1", ["not a complete parquet file", "again"]),
    "unknown ending": ("p.yaml", b"a\nb\n", ["unknown file format", ".csv, .tsv, .txt, .json, .jsonl, .parquet"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(write, error_of, case):
    name, content, expected = BROKEN[case]
    path = write(name, content)
    message = error(error_of, path)
    assert path in message
    for part in expected:
        assert part in message


def test_missing_file_names_similar_ones(write, error_of, tmp_path):
    write("toxic_prompts.jsonl", [{"prompt": "x"}])
    message = error(error_of, str(tmp_path / "toxic_promts.jsonl"))
    assert "no such file" in message and "toxic_prompts.jsonl" in message


def test_two_columns_of_one_name_in_parquet(tmp_path, error_of):
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert "two columns have the name 'prompt'" in error(error_of, str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("-", "a stream or device"),
        ("/dev/null", "a stream or device"),
        ("file:///data/p.jsonl", "are named without ://"),
        ("memory://p.jsonl", "URLs begin with https://"),
    ],
)
def test_sources_that_are_no_files(error_of, source, expected):
    assert expected in error(error_of, source)


def test_a_link_that_leads_nowhere(tmp_path, error_of):
    (tmp_path / "p.jsonl").symlink_to("q.jsonl")
    assert "is a link to q.jsonl, which does not exist" in error(error_of, str(tmp_path / "p.jsonl"))


def test_missing_folder(error_of, tmp_path):
    assert f"the folder {tmp_path / 'nowhere'} does not exist" in error(error_of, str(tmp_path / "nowhere" / "p.csv"))


def test_folder(write, error_of, tmp_path):
    write("p.jsonl", [{"prompt": "x"}])
    message = error(error_of, str(tmp_path))
    assert "is a folder" in message and "p.jsonl" in message


def test_missing_column_of_a_benchmark_names_the_recipe_field(write, error_of):
    path = write("p.csv", "text\na\n")
    field = "evaluate.benchmarks.xstest.prompts"
    message = error_of(read_prompts, DataSource(source=path), "xstest", field)
    assert message.startswith(field) and f"`columns.prompt: NAME` under {field}" in message


def test_bad_column_mappings(write, error_of):
    path = write("p.csv", "text\na\n")
    assert "no column 'goal'; columns: text" in error(error_of, path, columns={"prompt": "goal"})
    message = error(error_of, path, columns={"promt": "text"})
    assert "columns.promt: unknown column" in message and "prompt, id, label" in message


def test_where_that_matches_nothing(write, error_of):
    path = write("p.csv", "prompt,label\na,safe\nb,unsafe\nc,safe\n")
    message = error(error_of, path, where={"label": "save"})
    assert "no row matches where" in message and "'safe' (2), 'unsafe' (1)" in message
    assert "no column 'kind'" in error(error_of, path, where={"kind": "x"})


@pytest.mark.parametrize("key", ["split", "revision"])
def test_hub_fields_of_a_local_file(write, error_of, key):
    message = error(error_of, write("p.csv", "prompt\na\n"), **{key: "test"})
    assert f"{key} 'test' applies to hub data sets" in message and f"remove {key}" in message


def test_sampling_more_rows_than_the_file_has(write, error_of):
    path = write("p.csv", "prompt\na\nb\nb\n")
    message = error(error_of, path, rows=2, skip=1)
    assert "rows: 2 with skip: 1 needs 3 rows, but there are 2; lower it, or read all with " in message
    assert "but there are 2" in error(error_of, path, skip=2)


def test_first_human_turn_of_text_without_turns(write, error_of):
    path = write("p.jsonl", [{"prompt": "Human: a"}, {"prompt": "Assistant: hello"}])
    assert "line 2: 'prompt' must begin with \"Human:\"" in error(error_of, path, first_human_turn=True)
    path = write("p.jsonl", [{"prompt": "\n\nHuman:\n\nAssistant: hello"}])
    assert "line 1: the first human turn of 'prompt' is empty" in error(error_of, path, first_human_turn=True)


def test_builtin(error_of):
    assert "no split 'test'; built-in sets have the splits train and held_out" in error(
        error_of, "builtin", split="test"
    )
    assert "revision 'main' applies to hub data sets" in error(error_of, "builtin", revision="main")
    message = error_of(read_prompts, DataSource(), "xstest", "evaluate.benchmarks.xstest.prompts")
    assert "no built-in set 'xstest'" in message


ALMOST_DATA = st.lists(
    st.sampled_from(
        [
            b'{"prompt": "a"',
            b"}",
            b"\n",
            b",",
            b'"',
            b'{"prompt": "x", "response": "y"}\n',
            b"prompt,response\n",
            b"system,history,tools\n",
            b'{"conversations": [{"from": "human", "value": [{}]}], "system": 3, "history": [[1]], "data": [{}]}\n',
        ]
        + [
            b"\xff",
            b"\\ud800",
            b"[",
            b"]",
            b"\x00",
            b"\r",
            b"null",
            b"\xef\xbb\xbf",
            b'{"messages": [{}]}',
            b"NaN",
        ]
    ),
    max_size=20,
).map(b"".join)


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.json", "p.jsonl", "p.csv.gz", "p.parquet"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | ALMOST_DATA)
def test_any_file_gives_rows_or_a_user_error(write, name, content):
    source = DataSource(source=write(name, content))
    for reader in (read_prompts, read_conversations):
        try:
            assert reader(source, "toxic").rows
        except UserError as error:
            str(error).encode()
