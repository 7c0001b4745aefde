"""Any data file gives rows or a single message that names it; never a stack trace, and nothing is written."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import changed, damaged, examples

from dcr_ds.cli import main
from dcr_ds.data import read_conversations, read_prompts
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

ROWS = [
    {"id": str(number), "prompt": f"Name a tree, {number}", "response": "An oak.", "label": "safe", "pair": "a"}
    for number in range(3)
]
DIALOGUES = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Why {number}?"},
                  {"role": "assistant", "content": "So."}]}
    for number in range(3)
]  # fmt: skip
CSV = b'id,prompt,response\n1,"a, ""b""",c\n2,"d\ne",f\n'


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


VALID = {
    "p.csv": CSV,
    "p.jsonl": lines(ROWS),
    "p.json": json.dumps(ROWS).encode(),
    "p.csv.gz": gzip.compress(CSV, mtime=0),
    "p.jsonl.gz": gzip.compress(lines(DIALOGUES), mtime=0),
    "p.parquet": parquet(),
}
RULES = st.fixed_dictionaries(
    {},
    optional={
        "rows": st.integers(1, 9),
        "skip": st.integers(0, 9),
        "columns": st.dictionaries(st.sampled_from(["prompt", "response", "x"]), st.text(max_size=6), max_size=2),
        "where": st.dictionaries(st.sampled_from(["label", "x"]), st.text(max_size=6), max_size=1),
        "first_human_turn": st.booleans(),
    },
)


def read_or_refused(path, **fields):
    """The messages of the readers that raise for the file."""
    refusals = []
    for read, name in ((read_prompts, "toxic"), (read_conversations, "general")):
        try:
            assert read(DataSource(source=str(path), **fields), name).rows
        except UserError as error:
            assert str(path) in str(error) or "data." in str(error), error
            refusals.append(str(error))
    return refusals


@pytest.mark.parametrize("name", list(VALID))
@examples(60)
@given(data=st.data())
def test_damaged_files(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(VALID[name]) | st.binary(max_size=40)))
    read_or_refused(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("rows", [ROWS, DIALOGUES], ids=["rows", "dialogues"])
@examples(100)
@given(data=st.data())
def test_rows_with_random_values(tmp_path, rows, data):
    new, fields = data.draw(changed(rows)), data.draw(RULES)
    new = new if isinstance(new, list) else [new]
    for name, content in (("p.json", json.dumps(new)), ("p.jsonl", "\n".join(map(json.dumps, new)))):
        (tmp_path / name).write_text(content)
        read_or_refused(tmp_path / name, **fields)


@examples(60, full=1000)
@given(content=damaged(lines(ROWS)) | st.binary(max_size=30))
def test_a_run_on_a_bad_file_writes_nothing(tmp_path, capsys, content):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    try:
        read_prompts(DataSource(source=str(path)), "toxic")
    except UserError:
        capsys.readouterr()
        assert (
            main(["train", "recipes/smollm2-135m.yaml", "--data.toxic", str(path), "--output", f"{tmp_path}/out"]) == 2
        )
        log = capsys.readouterr().err
        assert log.startswith("error: data.toxic: ") and "Traceback" not in log
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]
