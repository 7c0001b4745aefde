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


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_adapter_on_tied_embeddings(failing, tmp_path, module, options):
    folder = make_model(tmp_path / "tied", layers=2)
    options = ["--model.source", folder, "--output", tmp_path, "--align.adapter", "lora", *options]
    message = failing(*options, "--align.lora.targets", f"[q_proj, {module}]")
    assert message.startswith("align.lora.targets: ") and module in message and "leave" in message
    assert not (tmp_path / "run/refine").exists()
