"""Bad data is an error before any model is loaded: field, file, line, column, and what to do."""

import json

import pytest
from small_runs import ROWS, write_rows

from dcr_ds.cli import main

GOOD = b'{"prompt": "a"}\n'
FILES = {
    "empty": ("p.jsonl", b"", ["the file is empty"]),
    "not UTF-8": ("p.jsonl", GOOD + b'{"prompt": "\xe9t\xe9"}\n', ["line 2", "not UTF-8", "iconv"]),
    "a broken line in the middle": ("p.jsonl", GOOD + b'{"prompt": "b"\n' + GOOD, ["line 2", "not valid JSON"]),
    "a broken row in the middle": ("p.csv", b"prompt,id\na,1\nb, c,2\nd,3\n", ["line 3", "3 fields", "quote fields"]),
    "no such column": ("p.csv", b"text,id\na,1\n", ["no column 'prompt'", "text, id", "--data.toxic.columns.prompt"]),
    "an empty prompt": ("p.jsonl", GOOD + b'{"prompt": " "}\n', ["line 2", "'prompt' is empty", "remove the row"]),
    "a prompt that is no text": ("p.jsonl", GOOD + b'{"prompt": 3}\n', ["line 2", "'prompt' must be text", "a number"]),
    "only one class": (
        "p.jsonl",
        b'{"prompt": "a", "label": "seemingly_toxic"}\n',
        ["contains only one class", "use another file"],
    ),
    "an unknown ending": ("p.yaml", GOOD, ["unknown file format", ".jsonl"]),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_data_file(refused, tmp_path, case):
    name, content, expected = FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = refused("--data.toxic", path, "--data.toxic.max_bad_share", "0")
    assert message.startswith(f"data.toxic: {path}"), message
    assert all(word in message for word in expected), message


def test_missing_data_file(refused, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [])
    message = refused("--data.toxic", tmp_path / "promts.jsonl")
    assert message.startswith(
        f"data.toxic: {tmp_path}/promts.jsonl: no such file; similar names in that folder: prompts.jsonl"
    )


def test_hub_data_without_network(refused):
    message = refused("--data.toxic", "nobody/no-such-prompts")
    assert message.startswith("data.toxic: nobody/no-such-prompts (train): "), message
    assert "HF_HUB_OFFLINE" in message and "--data.toxic.source prompts.jsonl" in message


def test_conversations_without_answers(refused, tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [{"prompt": "a", "response": ""}])
    message = refused("--data.general", path)
    assert message.startswith(f"data.general: {path}: no usable conversations: ") and "empty answer" in message


def test_too_few_prompts(refused, tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    message = refused("--data.toxic", path)
    assert message.startswith("data.toxic: 2 rows") and "add rows" in message


def test_one_prompt_in_both_classes(refused, tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [*ROWS["toxic"], {"prompt": "Paint  Clouds"}])
    message = refused("--data.toxic", path)
    assert "have 1 prompts in common" in message and str(path) in message and "Paint  Clouds" in message


def test_too_few_rows_for_the_file(refused):
    message = refused("--data.toxic.rows", "7")
    assert message.startswith("data.toxic: ") and "7" in message and "6" in message


def test_training_data_in_a_benchmark(failing, recipe, tmp_path):
    """The error names the overlap; with --allow_leakage the run continues and records it in its folder."""
    path = write_rows(tmp_path / "leaky.jsonl", [*ROWS["general"], {"prompt": "COUNT apples", "response": "One."}])
    options = ["--data.general", path, "--stages", "[align, evaluate]", "--output", tmp_path, "--name", "leaky"]
    message = failing(*options)
    assert all(word in message for word in ("overlap", "COUNT apples", "data.general", "asked", "--allow_leakage true"))
    assert not (tmp_path / "leaky").exists()
    assert main(["train", recipe, *map(str, options), "--allow_leakage", "true"]) == 0
    environment = json.loads((tmp_path / "leaky/environment.json").read_text())
    assert any("data.general" in overlap and "asked" in overlap for overlap in environment["overlaps"])
    assert (tmp_path / "leaky/report/report.md").is_file()


def test_training_data_in_a_benchmark_that_is_evaluated_later(failing, recipe, tmp_path):
    """As by slurm/pipeline.sh, a job per stage: the evaluation reads no training data."""
    path = write_rows(tmp_path / "leaky.jsonl", [*ROWS["general"], {"prompt": "COUNT apples", "response": "One."}])
    options = ["--data.general", path, "--output", tmp_path, "--name", "leaky"]
    assert main(["train", recipe, *map(str, options), "--stages", "[align]"]) == 0
    message = failing(*options, "--stages", "[evaluate]")
    assert all(word in message for word in ("overlap", "COUNT apples", "leaky (data.general)", "--allow_leakage true"))
