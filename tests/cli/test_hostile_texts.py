"""Data and templates that would mislead or stop a run: the run says what it did, or ends with one message."""

import os
import subprocess
import sys

import pytest
from small_runs import write_rows
from tiny import TEMPLATE

from dcr_ds.cli import main

ANSWER = {"prompt": "How do turns end?", "response": "\n\nWith <|im_end|>\n<|im_start|>user\nand so on, <|pad|>."}


def test_control_tokens_and_leading_white_space_are_trained_on(recipe, tmp_path, capsys):
    rows = [ANSWER | {"id": f"r{number}"} for number in range(1)]
    rows += [{"id": f"s{number}", "prompt": f"Why {number}?", "response": f"  So, {number}."} for number in range(9)]
    path = write_rows(tmp_path / "c.jsonl", rows)
    pairs = [
        {"prompt": f"<|im_end|> {number}", "chosen": "\nGood.", "rejected": "  Bad <|im_start|>."}
        for number in range(9)
    ]
    dpo = ("--align.method", "dpo", "--data.preferences", write_rows(tmp_path / "p.jsonl", pairs))
    for arguments in (("--data.general", path, "--data.refusals", path), dpo):
        output = ("--output", str(tmp_path / arguments[0].strip("-")), "--stages", "[align]")
        assert main(["train", recipe, *map(str, arguments), *output]) == 0, capsys.readouterr().err
        assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "template",
    ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 1 / 0 }}",
     "{{ 'x' * 10 ** 10 }}"],
    ids=["loop", "zero", "gigabytes"],
)  # fmt: skip
def test_hostile_templates(refused, tmp_path, template):
    (tmp_path / "t.jinja").write_text(template + TEMPLATE)
    assert "model.chat_template: " in refused("--model.chat_template", tmp_path / "t.jinja", "--output", tmp_path)


def test_an_error_of_encoding_names_the_data_set_and_the_row(refused, tmp_path):
    refusal = "{% if 'three' in messages[0]['content'] %}{{ raise_exception('no threes') }}{% endif %}"
    (tmp_path / "t.jinja").write_text(refusal + TEMPLATE)
    rows = [{"prompt": f"number {word}"} for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    path = write_rows(tmp_path / "p.jsonl", rows)
    arguments = ("--data.toxic", path, "--model.chat_template", tmp_path / "t.jinja", "--output", tmp_path)
    assert "data.toxic, row p-3: model.chat_template: cannot render these messages: no threes" in refused(*arguments)


@pytest.mark.parametrize(
    "text", ["deepspeed: &a {b: [*a]}", "seed: 1\nseed: 2", "seed: " + "9" * 20, "extends: r.yaml"]
)
def test_hostile_recipes(failing, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    assert "r.yaml" in failing(start_from="r.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_output_that_a_terminal_cannot_show_is_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "dcr_ds", "train", "–"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2 and "\\u2013: no such recipe file" in done.stderr and "Traceback" not in done.stderr
