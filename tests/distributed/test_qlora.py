"""QLoRA as a user launches it: `train.py` on one device, and with DeepSpeed's launcher ZeRO-3 on two ranks."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_launch import deepspeed, finish, losses, start
from tiny import make_model
from transformers import AutoModelForCausalLM

LAYER = 2
STEPS = {"refine": 3, "align": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.05}
    return make_model(tmp_path_factory.mktemp("model") / "tiny", tied=False, **sizes)


@pytest.fixture(scope="module")
def options(model) -> list[str]:
    """The shipped QLoRA recipe of the 135M model, with a tiny model and few steps."""
    values = {
        "name": "tiny", "model.source": model, "stages": "[refine, align]", "checkpoint.every_steps": 1,
        "data.general.rows": 24, "data.refusals.rows": 16, "refine.layer": LAYER, "refine.global_batch": 8,
        "refine.retain_batch": 3, "refine.max_steps": STEPS["refine"], "refine.patience": 99,
        "refine.on_failure": "continue", "align.global_batch": 12,
        "align.epochs": 0.9, "align.max_length": 512,
    }  # fmt: skip
    return ["recipes/smollm2-135m-qlora.yaml", *(str(word) for name in values for word in (f"--{name}", values[name]))]


@pytest.fixture(scope="module")
def run(tmp_path_factory, options) -> Path:
    output = tmp_path_factory.mktemp("one")
    finish(start([sys.executable, "train.py", *options, "--output", str(output)]))
    return output / "tiny"


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(3, 43).view(2, 20)).logits


def test_both_stages_train_adapters_that_chain(run, model):
    """Base and refine's adapter make the refined model; refined model and align's adapter the aligned model."""
    base = model
    for stage in ("refine", "align"):
        assert len(losses(run, stage)) == STEPS[stage]
        adapter, merged = run / stage / "adapter", run / stage / "model"
        assert json.loads((adapter / "base.json").read_text())["source"] == str(base)
        with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        expected = logits(AutoModelForCausalLM.from_pretrained(merged))
        torch.testing.assert_close(logits(with_adapter), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        changed = {
            int(name.split(".")[2])
            for name, weight in load_file(merged / "model.safetensors").items()
            if not torch.equal(weight, load_file(base / "model.safetensors")[name])
        }
        assert changed == set(range(LAYER if stage == "refine" else 4))
        base = merged


@pytest.mark.slow
def test_zero3_with_activation_checkpointing_trains_the_same_adapters(run, options, tmp_path):
    words = ["--model.quantize_zero3", "true", "--model.activation_checkpointing", "true"]
    command = [*options, *words, "--output", str(tmp_path), "--deepspeed", "ds_configs/zero3.json"]
    finish(start(deepspeed(*command, ranks=2)), timeout=280)
    for stage in ("refine", "align"):
        assert losses(tmp_path / "tiny", stage) == pytest.approx(losses(run, stage), rel=1e-3)
        file = f"{stage}/adapter/adapter_model.safetensors"
        expected, adapter = load_file(run / file), load_file(tmp_path / "tiny" / file)
        assert {name: weight.shape for name, weight in expected.items()} == {
            name: weight.shape for name, weight in adapter.items()
        }
        assert all(torch.isfinite(weight).all() for weight in adapter.values())
