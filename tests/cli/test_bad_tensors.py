"""A run, and --dry-run, refuse a model folder whose tensors do not fit its config, before anything is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_model


@pytest.fixture
def without_head(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_untied_model_without_a_head(refused, without_head, options):
    message = refused("--name", "other", "--model.source", without_head, *options)
    assert message.startswith(f"{without_head}: config.json says tie_word_embeddings: false, but the weights hold no")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_quantised_model(refused, model, tmp_path, options):
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    message = refused("--name", "other", "--model.source", folder, *options)
    assert message.startswith(f"{folder}: the weights are quantised already (config.json says gptq)")


def without_prefix(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def with_another_head(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 1.01}


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_prefix, "the names of its tensors lack the prefix 'model.'"),
        (with_another_head, "config.json says tie_word_embeddings: true, but the weights hold a lm_head.weight that"),
    ],
)
def test_other_tensors_than_those_of_the_architecture(failing, tmp_path, change, words, options):
    folder = make_model(tmp_path / "tied", layers=2)
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(file)).items()}, file)
    message = failing("--model.source", folder, "--output", tmp_path, *options)
    assert message.startswith(f"{folder}: {words}")
    assert not (tmp_path / "run/refine").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_single_file_and_shards(failing, model, tmp_path, options):
    folder = shutil.copytree(model, tmp_path / "model")
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors"), "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = failing("--model.source", folder, "--output", tmp_path, *options)
    assert message.startswith(f"{folder}: holds both model.safetensors and model.safetensors.index.json")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_adapter_on_tied_embeddings(failing, tmp_path, module, options):
    folder = make_model(tmp_path / "tied", layers=2)
    options = ["--model.source", folder, "--output", tmp_path, "--align.adapter", "lora", *options]
    message = failing(*options, "--align.lora.targets", f"[q_proj, {module}]")
    assert message.startswith("align.lora.targets: ") and module in message and "leave" in message
    assert not (tmp_path / "run/refine").exists()
