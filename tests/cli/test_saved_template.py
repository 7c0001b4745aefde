"""A trained model and its adapter keep the chat template of the training, and stop at its end-of-turn token."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import TEMPLATE, make_model
from transformers import AutoTokenizer, GenerationConfig

from dcr_ds.cli import main
from dcr_ds.models.tokenizer import TEMPLATES, load_tokenizer
from dcr_ds.models.tokenizer_files import keep_tokenizer

INSTRUCTION = (TEMPLATES / "instruction.jinja").read_text()
OTHER = TEMPLATE.replace("<|im_end|>", "<|pad|>")  # ends turns with a token other than EOS


@pytest.fixture
def source(tmp_path) -> Path:
    return make_model(tmp_path / "source", layers=1)


def stops(folder) -> list[int]:
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return ends if isinstance(ends, list) else [ends]


def test_another_template_replaces_the_old_one(source, tmp_path):
    (source / "chat_template.jinja").unlink()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    (file := tmp_path / "other.jinja").write_text(OTHER)
    trained = shutil.copytree(source, tmp_path / "trained")
    keep_tokenizer(source, str(file), trained)
    assert AutoTokenizer.from_pretrained(trained).chat_template == OTHER
    assert "chat_template" not in json.loads((trained / "tokenizer_config.json").read_text())
    assert sorted(stops(trained)) == [0, 2]  # <|pad|> and EOS


def test_the_template_is_unchanged_by_default(source, tmp_path):
    trained = shutil.copytree(source, tmp_path / "trained")
    keep_tokenizer(source, None, trained)
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == {
        file.name: file.read_bytes() for file in source.iterdir()
    }


def test_a_model_without_generation_config_gets_one(source, tmp_path):
    (source / "generation_config.json").unlink()
    (file := tmp_path / "other.jinja").write_text(OTHER)
    trained = shutil.copytree(source, tmp_path / "trained")
    keep_tokenizer(source, str(file), trained)
    assert len(stops(trained)) == 2
    assert GenerationConfig.from_pretrained(trained).bos_token_id == 1


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_saves_the_template_it_trained_with(recipe, model, tmp_path, capsys, adapter):
    base = shutil.copytree(model, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    options = ["--model.source", str(base), "--model.chat_template", "instruction", "--align.adapter", adapter]
    assert main(["train", recipe, *options, "--output", str(tmp_path), "--control", "none"]) == 0
    run = tmp_path / "run"
    folders = [run / "refine/model", run / "align/model"] + ([run / "align/adapter"] if adapter == "lora" else [])
    for folder in folders:
        assert load_tokenizer(folder).chat_template == INSTRUCTION
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert load_tokenizer(tmp_path / "out").chat_template == INSTRUCTION
    if adapter == "lora":
        merged = tmp_path / "merged"
        assert main(["export", str(tmp_path / "out"), "--merge", "--out", str(merged)]) == 0, capsys.readouterr().err
        own = ("README.md", "exported.json")  # of a run, and of an export
        of_merged, of_run = (
            {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in own}
            for folder in (merged, run / "align/model")
        )
        assert of_merged == of_run
