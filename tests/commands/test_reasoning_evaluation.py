"""Evaluation of a model whose chat template opens a block of reasoning, with the block and without, end to end."""

import pytest
from tiny import make_reasoning_model

from dcr_ds.commands.evaluate import run
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.report import write_report

pytestmark = pytest.mark.usefixtures("own_environment")
SETTINGS = ["--benchmarks", "builtin-toxic-twins", "--limit", "6", "--max-new-tokens", "8", "--judge", "rules"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_reasoning_model(tmp_path_factory.mktemp("reasoning") / "model")


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
