"""An uploaded folder has the model card of its run. The upload needs the hub; test_export.py tests its errors."""

import json
import shlex
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from run_folders import write_run

from dcr_ds.errors import UserError
from dcr_ds.export.push import add_card, push
from dcr_ds.export.write import ExportOptions, export


def test_a_finished_stage_has_its_card(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    add_card(run, "align", out)
    assert "Trained in two stages" in ModelCard.load(out / "README.md").text
    add_card(run, "refine", out)
    assert "Trained in two stages" in (out / "README.md").read_text()  # an existing one is kept


def test_an_unfinished_stage_and_an_adapter_outside_of_runs_have_no_card(tmp_path):
    run, adapter = write_run(tmp_path / "run"), tmp_path / "adapter"
    (run / "align" / "checkpoints").mkdir()
    (run / "align" / "summary.json").unlink()
    for trained in (run / "align", adapter):
        out = tmp_path / f"out of {trained.name}"
        for folder in (out, adapter):
            folder.mkdir(exist_ok=True)
        add_card(trained, None, out)
        assert not list(out.iterdir())


def test_what_is_missing_is_named_in_the_run_not_in_the_copy(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=f"^{run}/align/model: has no config.json"):
        export(run, tmp_path / "out", ExportOptions())
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.safetensors", b"no weights", "adapter_model.safetensors: cannot be read"),
        ("adapter_config.json", b"{", "adapter_config.json: names no base model"),
    ],
)
def test_a_damaged_adapter_is_not_exported(tmp_path, name, content, message):
    adapter = adapter_of(tmp_path / "adapter", "owner/base")
    (adapter / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        export(adapter, tmp_path / "out", ExportOptions())
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def uploaded(monkeypatch):
    """What would be uploaded: the text of each file."""
    files = {}

    def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
        assert ignore_patterns == ["exported.json"]  # a local path
        files.update({path.name: path.read_text() for path in Path(folder_path).rglob("*") if path.is_file()})

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: f"https://hub/{name}")
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return files


def adapter_of(folder, base):
    folder.mkdir()
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA", "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "base.json").write_text(json.dumps({"source": str(base), "sha256": "0"}))
    return folder


def test_pushed_files_contain_no_local_paths(tmp_path, uploaded):
    data = tmp_path / "my data" / "prompts.jsonl"
    run = write_run(tmp_path / "run", model={"source": str(tmp_path / "models" / "mine")})
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["data.toxic"] = {"source": str(data), "rows": 3, "sha256": "0" * 64}
    environment["notes"] = [f"data.toxic ({data}): 3 rows left out"]
    (run / "environment.json").write_text(json.dumps(environment))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path / "models" / "mine"), "a": "a/b"}))
    (out / "tokenizer_config.json").write_text(json.dumps({"name_or_path": str(tmp_path), "chat_template": "/a/b\n/c"}))
    (out / "README.md").write_text(f"base model: {tmp_path}/models/mine, see https://a.org/b/c and a/b/c")
    push(run, "align", out, "me/model")
    assert uploaded.pop("README.md") == "base model: mine, see https://a.org/b/c and a/b/c"
    (out / "README.md").unlink()
    push(run, "align", out, "me/model")
    assert set(uploaded) == {"README.md", "config.json", "tokenizer_config.json"}
    assert not [name for name, text in uploaded.items() if str(tmp_path) in text or str(tmp_path.parent) in text]
    assert "prompts.jsonl" in uploaded["README.md"] and "mine" in uploaded["README.md"]
    assert json.loads(uploaded["config.json"]) == {"_name_or_path": "mine", "a": "a/b"}
    assert json.loads(uploaded["tokenizer_config.json"])["chat_template"] == "/a/b\n/c"


def test_an_adapter_names_a_base_that_others_can_download(tmp_path, uploaded):
    cached = tmp_path / "hub" / "models--owner--base" / "snapshots" / "0123abc"
    push(tmp_path, None, adapter_of(tmp_path / "a", cached), "me/model")
    config = json.loads(uploaded["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "0123abc")
    assert json.loads(uploaded["base.json"]) == {"source": "owner/base", "sha256": "0"}
    push(tmp_path, None, adapter_of(tmp_path / "b", "owner/other"), "me/model")
    assert json.loads(uploaded["adapter_config.json"])["base_model_name_or_path"] == "owner/other"


def test_an_adapter_of_a_local_base_is_not_pushed(tmp_path, uploaded):
    for number, base in enumerate((tmp_path / "run" / "refine" / "model", "", "models/mine/it")):
        adapter = adapter_of(tmp_path / f"a{number}", base)
        with pytest.raises(UserError, match="which nobody else has; push a whole model with --merge"):
            push(tmp_path, None, adapter, "me/model")
    assert not uploaded


def test_the_command_for_a_later_upload_can_be_pasted(tmp_path):
    """Tests are offline, so that the upload fails."""
    out = tmp_path / "my model"
    with pytest.raises(UserError) as error:
        push(tmp_path, None, adapter_of(out, "owner/base"), "me/model")
    command = shlex.split(str(error.value).partition("upload it with: ")[2])
    assert command == ["hf", "upload", "me/model", str(out), ".", "--private", "--exclude", "exported.json"]
