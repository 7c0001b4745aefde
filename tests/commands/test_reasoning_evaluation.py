"""Evaluation of a model whose chat template opens a block of reasoning, with the block and without, end to end."""

import os

import pytest
from tiny import make_model, make_tokenizer

from dcr_ds.commands.evaluate import run
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.report import write_report

OPENED = "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}" + OPENED + "{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n" + OPENED + "{% endif %}"
)
SETTINGS = ["--benchmarks", "builtin-toxic-twins", "--limit", "6", "--max-new-tokens", "8", "--judge", "rules"]


@pytest.fixture(autouse=True)
def own_environment():
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tokenizer = make_model(tmp_path_factory.mktemp("reasoning") / "model"), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_reasoning_on_and_off(model, tmp_path):
    out = ["--out", str(tmp_path)]
    run([f"on={model}", *SETTINGS, *out])
    run([f"off={model}", *SETTINGS, *out, "--chat-template-kwargs", '{"enable_thinking": false}'])
    rows = {}
    for name in ("on", "off"):
        (folder,) = (tmp_path / name).rglob("builtin-toxic-twins")
        rows[name] = read_jsonl(folder / "generations.jsonl")
        if name == "on":  # eight tokens do not close the block: no answer
            assert read_json(folder / "scores.json")["degenerate"] == len(rows["on"]) == 6
    assert all(row["completion"].startswith("<think>") for row in rows["on"])
    assert not any(row["completion"].startswith("<think>") for row in rows["off"])
    assert all(row["template_variables"] == {"enable_thinking": "false"} for row in rows["off"])
    report = tmp_path / "report.md"
    write_report([tmp_path / "on", tmp_path / "off"], report)
    assert "different modes of their chat templates" in report.read_text()
