"""Malicious or damaged model folders: a single message, nothing copied, no code executed."""

import ast
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from processes import ROOT
from safetensors.torch import save_file
from tiny import make_model

from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.export.write import ExportOptions, export
from dcr_ds.models.check import check_model
from dcr_ds.models.checkpoint_files import check_checkpoint, model_config
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.merge import load_with_adapter, merge_lora
from dcr_ds.models.splice import splice
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.models.tokenizer_files import keep_tokenizer

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("source") / "model", layers=2)


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret.json").write_text('{"password": "hunter2"}')
    return tmp_path / "secret.json"


@pytest.mark.parametrize("name", ["notes.json", "README.txt", "chat_template.jinja", "tokenizer_config.json"])
def test_links_out_of_the_folder_are_refused(folder, secret, tmp_path, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name}: is a symbolic link to {secret}, outside of the folder"):
        check_checkpoint(folder)
    if name.startswith(("chat", "tokenizer")):
        with pytest.raises(UserError, match="is a symbolic link"):
            keep_tokenizer(folder, None, tmp_path)
    else:
        model = load_causal_lm(folder, torch.float32, "eager", torch.device("cpu"))
        with pytest.raises(UserError, match="is a symbolic link"):
            splice(model, {}, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_within_the_folder_and_to_the_cache_of_the_hub_are_followed(whole, folder, tmp_path):
    (folder / "copy.json").symlink_to("config.json")
    check_checkpoint(folder)
    snapshot, blobs = (tmp_path / "models--a--b" / name for name in ("snapshots/0123", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(whole.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    check_checkpoint(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    check_checkpoint(tmp_path / "link")


def test_an_adapter_with_a_link_out_of_its_folder_is_not_exported(secret, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "notes.md").symlink_to(secret)
    with pytest.raises(UserError, match="is a symbolic link"):
        export(adapter, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config", [{"peft_type": "EVIL"}, {}, {"peft_type": "LORA", "r": "x"}, {"peft_type": "LORA", "target_modules": 3}]
)
def test_an_adapter_that_peft_cannot_load_is_an_error_that_names_it(whole, tmp_path, config):
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(1, 32)}, tmp_path / "adapter_model.safetensors")
    base = {"base_model_name_or_path": str(whole)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(base | config))
    with pytest.raises(UserError, match=f"{tmp_path}: "):
        load_with_adapter(whole, tmp_path, torch.float32, "eager", torch.device("cpu"))
    with pytest.raises(UserError, match=f"{tmp_path}: "):
        merge_lora(whole, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_an_error_without_waiting_for_it(folder):
    os.mkfifo(folder / "notes.json")
    with pytest.raises(UserError, match=r"notes\.json: is not a regular file"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    "shard", ["pytorch_model.bin", "../other.safetensors", "/etc/passwd", "a/b.safetensors", "", 1]
)
def test_an_index_names_safetensors_in_its_own_folder_only(folder, shard):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(UserError, match=r"index\.json: "):
        check_checkpoint(folder)


@pytest.mark.parametrize("content", [DEEP, "{" * 9999, '{"a": ' + "9" * 5000 + "}", "\0", "[]"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_parsed_is_named(folder, name, content):
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        check_checkpoint(folder)


@pytest.mark.parametrize("content", [DEEP, "{}", "\0", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_named(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"{folder}: no tokenizer that transformers can load"):
        load_tokenizer(folder)


def test_a_header_of_gigabytes_is_not_read(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.write((50 << 30).to_bytes(8, "little"))
        file.truncate(51 << 30)  # sparse
    with pytest.raises(UserError, match="not a complete safetensors file"):
        check_checkpoint(folder)


def test_code_of_a_model_is_never_run_and_no_question_is_asked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    mark = tmp_path / "was-run"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass A: ...\n")
    names = {"AutoConfig": "code.A", "AutoModelForCausalLM": "code.A", "AutoTokenizer": ["code.A", "code.A"]}
    config = model_config(folder)
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    check_checkpoint(folder)
    load_tokenizer(folder)
    load_causal_lm(folder, torch.float32, "eager", torch.device("cpu"))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "model_type": "code"}))
    with pytest.raises(UserError, match="the architecture code is not tested"):
        check_model(folder)
    assert not mark.exists()


def test_every_loading_call_disables_remote_code():
    for file in (ROOT / "dcr_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in ("from_pretrained", "from_config") and owner.startswith(("Auto", "kind")):
                    options = {option.arg: option.value for option in node.keywords}
                    assert ast.unparse(options["trust_remote_code"]) == "False", f"{file}, line {node.lineno}"


def test_a_full_disk_is_blamed_on_the_file_that_is_written(whole, tmp_path):
    """A limit on the size of files, which fails like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError) as error, write_errors_as_user_errors(tmp_path):
            shutil.copyfile(whole / "model.safetensors", tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).startswith(f"{tmp_path / 'copy'}: cannot be written")
