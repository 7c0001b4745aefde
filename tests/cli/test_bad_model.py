"""Models that cannot be used: the message names the folder, the file and what to do."""

import json
import shutil

import pytest

from dcr_ds.cli import main


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_in_the_header(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])


def no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"[]")


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def sharded(content):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def with_config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def config_text(text):
    return lambda folder: (folder / "config.json").write_text(text)


SHARDS = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
FOLDERS = {
    "no weights": (remove("model.safetensors"), ["no weights", "model.safetensors"]),
    "only a pickle": (only_a_pickle, ["pytorch_model.bin is a pickle", "as safetensors"]),
    "truncated weights": (truncated, ["model.safetensors", "truncated", "copy it again"]),
    "weights cut in the header": (cut_in_the_header, ["model.safetensors", "the header is cut off", "copy it again"]),
    "weights that are not safetensors": (no_safetensors, ["model.safetensors", "not a complete safetensors file"]),
    "empty weights": (empty_weights, ["model.safetensors", "not a complete safetensors file"]),
    "a missing shard": (sharded(json.dumps(SHARDS)), ["index.json", "model-00002-of-00002", "copy the model"]),
    "a broken index": (sharded("{"), ["model.safetensors.index.json", "copy the model again"]),
    "an index without a map": (sharded("{}"), ["model.safetensors.index.json", "copy the model again"]),
    "fewer blocks than its config": (
        with_config(num_hidden_layers=3),
        ["says 3 blocks", "hold 2", "copy the model again"],
    ),
    "a model of text and images": (with_config(text_config={}), ["a model of text and images", "save_pretrained"]),
    "no config": (remove("config.json"), ["no config.json", "save_pretrained"]),
    "a broken config": (config_text("{"), ["config.json", "not valid JSON"]),
    "a list for a config": (config_text("[]"), ["config.json", "list"]),
    "a config without blocks": (config_text('{"model_type": "llama"}'), ["config.json", "num_hidden_layers"]),
}


@pytest.fixture
def broken(model, tmp_path):
    def copy(change):
        change(shutil.copytree(model, tmp_path / "model"))
        return tmp_path / "model"

    return copy


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_model_folder(refused, broken, case):
    change, expected = FOLDERS[case]
    folder = broken(change)
    message = refused("--model.source", folder)
    assert message.startswith(str(folder)), message
    assert all(word in message for word in expected), message


def test_hub_model_without_network(refused):
    message = refused("--model.source", "nobody/no-such-model")
    assert message.startswith("model.source: nobody/no-such-model")
    assert all(word in message for word in ("the network", "HF_TOKEN", "a local folder"))


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere", "no-such-model", "model.gguf"])
def test_missing_model(refused, source):
    message = refused("--model.source", source)
    assert message.startswith("model.source: ") and source.removeprefix("./") in message


def test_file_that_is_not_gguf(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and no more")
    assert refused("--model.source", path).startswith(f"{path}: ")


def test_no_tokenizer(failing, broken, tmp_path):
    folder = broken(remove("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    message = failing("--model.source", folder, "--output", tmp_path)
    assert message.startswith(f"{folder}: no tokenizer that transformers can load")


def test_no_chat_template(failing, broken, recipe, tmp_path):
    """The message suggests a template, with which the same command succeeds."""
    options = ["--model.source", str(broken(remove("chat_template.jinja"))), "--output", str(tmp_path)]
    message = failing(*options)
    assert message.startswith(f"{tmp_path}/model: this tokenizer has no chat template")
    assert "model.chat_template" in message and "instruction" in message
    assert main(["train", recipe, *options, "--model.chat_template", "instruction"]) == 0


def test_missing_chat_template(failing, tmp_path):
    message = failing("--model.chat_template", "nowhere.jinja", "--output", tmp_path)
    assert message.startswith("model.chat_template: no such file 'nowhere.jinja'") and "instruction" in message


def test_chat_template_that_is_not_jinja(failing, tmp_path):
    (tmp_path / "broken.jinja").write_text("{% for message in messages %}")
    message = failing("--model.chat_template", tmp_path / "broken.jinja", "--output", tmp_path)
    assert message.startswith("model.chat_template: ")
