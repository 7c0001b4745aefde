"""Prompt sets from every kind of file: columns, filters, labels, duplicates, ids and samples."""

import pytest

from dcr_ds.data import read_prompts
from dcr_ds.data.records import Prompt
from dcr_ds.recipe import DataSource

ROWS = [
    {"id": "a", "prompt": 'How do I kill a "zombie", a process?', "label": "safe", "category": "homonyms"},
    {"id": "b", "prompt": "First line\nsecond line, with a comma", "label": "unsafe", "category": "figures"},
    {"id": "c", "prompt": "Où acheter du poison à rats? 🐀\u2028x", "label": "safe", "category": "homonyms"},
]
TEXT_NAMES = ["p.csv", "p.json", "p.jsonl"]
NAMES = [*TEXT_NAMES, *(name + ".gz" for name in TEXT_NAMES), "p.parquet", "P.JSONL"]


def read(path, name="toxic", **fields):
    return read_prompts(DataSource(source=path, **fields), name)


def texts(prompt_set):
    return [row.prompt for row in prompt_set.rows]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(write, name):
    prompt_set = read(write(name, ROWS))
    assert prompt_set.rows == [Prompt(r["id"], r["prompt"], r["label"], r["category"], None) for r in ROWS]
    assert prompt_set.name == "toxic" and prompt_set.source.endswith(name)


def test_the_hash_depends_on_the_rows_and_not_on_the_format(write):
    hashes = {read(write(name, ROWS)).sha256 for name in NAMES}
    assert len(hashes) == 1
    assert read(write("p.csv", ROWS[:2])).sha256 not in hashes


def test_object_of_columns(write):
    path = write("I-Alpaca.json", {"instructions": ["one", "two"], "tags": ["x", "y"], "inputs": []})
    prompt_set = read(path, columns={"prompt": "instructions", "category": "tags"})
    assert prompt_set.rows == [
        Prompt("I-Alpaca-1", "one", None, "x", None),
        Prompt("I-Alpaca-2", "two", None, "y", None),
    ]


def test_csv_with_byte_order_mark_blank_lines_and_an_unnamed_column(write):
    path = write("p.csv", b"\xef\xbb\xbf,Goal\r\n\r\n0,one\r\n1,two\r\n\r\n")
    assert texts(read(path, columns={"prompt": "Goal"})) == ["one", "two"]


def test_csv_cell_longer_than_the_csv_module_allows(write):
    assert len(texts(read(write("p.csv", [{"prompt": "x" * 200_000}])))[0]) == 200_000


def test_jsonl_rows_may_lack_optional_columns_and_lines_may_be_blank(write):
    path = write("p.jsonl", '{"prompt": "one"}\n\n  \n{"prompt": "two", "pair": "k", "category": null}')
    assert read(path).rows == [Prompt("p-1", "one"), Prompt("p-2", "two", pair="k")]


def test_numbers_stand_for_text_in_optional_columns(write):
    path = write("p.jsonl", [{"id": 7, "prompt": "one", "pair": 3.0}, {"id": 8, "prompt": "two", "pair": "3"}])
    assert [(row.id, row.pair) for row in read(path).rows] == [("7", "3"), ("8", "3")]


def test_empty_cells_written_by_pandas_do_not_form_a_pair(write):
    path = write("p.parquet", [{"prompt": "one", "pair": float("nan")}, {"prompt": "two", "pair": 1.0}])
    assert [row.pair for row in read(path).rows] == [None, "1"]


def test_where_compares_text_numbers_booleans_and_items_of_lists(write):
    rows = [
        {"prompt": "one", "flag": False, "level": 1, "tags": ["a", "b"]},
        {"prompt": "two", "flag": True, "level": 2, "tags": ["b"]},
        {"prompt": "three", "flag": False, "level": 3, "tags": []},
    ]
    path = write("p.jsonl", rows)
    assert texts(read(path, where={"flag": "false"})) == ["one", "three"]
    assert texts(read(path, where={"level": ["2", "3"]})) == ["two", "three"]
    assert texts(read(path, where={"tags": "b"})) == ["one", "two"]
    assert texts(read(path, where={"tags": "b", "flag": "false"})) == ["one"]
    spaced = write("p.csv", "prompt,label\none, unsafe\ntwo,unsafe \nthree,Unsafe\n")
    selected = read(spaced, where={"label": "unsafe"})
    assert texts(selected) == ["one", "two"]
    assert selected.notes == ["where: 'label' is also 'Unsafe' (1), which is not selected, as the case differs"]


def test_json_lines_are_recognised_in_a_file_of_another_name(write):
    lines = '{"prompt": "one, two"}\n{"prompt": "three"}\n'
    assert texts(read(write("p.csv", lines))) == texts(read(write("p.tsv", lines))) == ["one, two", "three"]


def test_rows_keep_their_number_in_the_file_through_where(write):
    path = write("p.csv", [{"prompt": "one", "k": "x"}, {"prompt": "two", "k": "y"}])
    assert read(path, where={"k": "y"}).rows[0].id == "p-2"


def test_one_file_feeds_both_stage_one_sets(write):
    rows = [{"prompt": "one", "label": "toxic"}, {"prompt": "two", "label": "seemingly_toxic"}]
    path = write("both.jsonl", rows)
    assert texts(read(path, "toxic")) == ["one"]
    assert texts(read(path, "seemingly_toxic")) == ["two"]
    assert read(path, "toxic").notes == ["1 of 2 prompts left out: label of the other class (line 2)"]
    assert texts(read(path, "xstest")) == ["one", "two"]


@pytest.mark.parametrize("name", ["toxic", "seemingly_toxic", "xstest"])
def test_a_benchmark_takes_every_row_whatever_its_name(write, name):
    rows = [{"prompt": "one", "label": "toxic"}, {"prompt": "two", "label": "seemingly_toxic"}]
    for labels in (rows, rows[:1]):
        prompts = read_prompts(DataSource(source=write("both.jsonl", labels)), name, "a", is_benchmark=True)
        assert len(prompts.rows) == len(labels) and not prompts.notes


def test_other_labels_are_kept_as_they_are(write):
    path = write("p.csv", ROWS)
    prompts = read(path)
    assert [row.label for row in prompts.rows] == ["safe", "unsafe", "safe"]
    noted = "rows of all labels are read as toxic: 'safe' (2), 'unsafe' (1)"
    assert len(prompts.notes) == 1 and prompts.notes[0].startswith(noted)
    assert "--data.toxic.where.label" in prompts.notes[0]
    assert read(path, where={"label": "unsafe"}).notes == read(path, "xstest").notes == []


@pytest.mark.parametrize("cell", [{"violence": True}, ["violence", "theft"]])
def test_a_category_of_lists_or_objects_is_not_used_and_noted(write, error_of, cell):
    """BeaverTails has an object of booleans in `category`; each row of it was an error."""
    path = write("p.jsonl", [{"prompt": f"may I {number}", "category": cell} for number in range(3)])
    prompts = read(path)
    assert len(prompts.rows) == 3 and prompts.rows[0].category is None
    assert any(note.startswith("the column 'category' is not used") for note in prompts.notes)
    assert "'category' must be text" in error_of(lambda: read(path, columns={"category": "category"}))


def test_names_of_classes_in_other_letters_are_labels_all_the_same(write):
    labels = ["Toxic", "seemingly toxic", "Seemingly-Toxic"]
    path = write("both.csv", [{"prompt": label, "label": label} for label in labels])
    assert texts(read(path, "toxic")) == labels[:1] and texts(read(path, "seemingly_toxic")) == labels[1:]


def test_duplicate_prompts_are_dropped_and_counted(write):
    rows = [
        {"prompt": "one", "id": "a"},
        {"prompt": " one\n", "id": "a"},
        {"prompt": "One"},
        {"prompt": "one"},
    ]
    prompt_set = read(write("p.jsonl", rows))
    assert texts(prompt_set) == ["one", "One"]
    assert prompt_set.notes == ["2 of 4 prompts left out: repeated (line 2, line 4)"]


def test_first_human_turn(write):
    dialogue = "\n\nHuman: What is\nthis?\n\nIt is new.\n\nAssistant: A cat.\n\nHuman: Thanks"
    path = write("hh.jsonl", [{"chosen": dialogue}, {"chosen": "\n\nHuman: Only this"}])
    prompt_set = read(path, columns={"prompt": "chosen"}, first_human_turn=True)
    assert texts(prompt_set) == ["What is\nthis?\n\nIt is new.", "Only this"]


def test_samples_of_one_file_are_disjoint_and_depend_on_the_seed(write):
    path = write("p.jsonl", [{"prompt": f"prompt {number}"} for number in range(50)])
    first, second = read(path, rows=20), read(path, rows=30, skip=20)
    assert len(first.rows) == 20 and not set(texts(first)) & set(texts(second))
    assert set(texts(first)) | set(texts(second)) == {f"prompt {number}" for number in range(50)}
    assert texts(read(path, skip=20)) == texts(second)
    assert texts(read(path, rows=20)) == texts(first) != texts(read(path, rows=20, seed=1))
    assert first.sha256 != read(path, rows=20, seed=1).sha256
    assert texts(read(path)) == [f"prompt {number}" for number in range(50)]


def test_file_next_to_the_package_is_found_by_its_relative_path():
    assert read("dcr_ds/data/builtin/general.jsonl").rows
