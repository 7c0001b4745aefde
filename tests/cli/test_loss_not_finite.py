"""A non-finite loss stops the run before the optimizer step, with exit code 1, the step, the samples and what to do."""

import json
import math
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from small_runs import ROWS, snapshot, write_rows
from transformers import AutoTokenizer

from dcr_ds.data import draw

RARE = "Z"  # a token that is not in the data


@pytest.fixture
def with_weight(model, tmp_path):
    """A copy of the model in which a tensor, or one row of it, is filled with a value."""

    def copy(name, value, row=slice(None)):
        folder = shutil.copytree(model, tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        weights[name][row] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


@pytest.mark.parametrize("stage", ["refine", "align"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_model_with_weights_that_are_not_finite(failing, with_weight, tmp_path, stage, value):
    folder = with_weight("model.layers.0.mlp.down_proj.weight", value)
    message = failing("--model.source", folder, "--stages", f"[{stage}]", "--output", tmp_path, code=1)
    assert message.startswith(f"{stage}: the loss is nan at step 1; no weight was changed by it"), message
    samples = {"refine": ["seemingly_toxic", "toxic"], "align": ["general", "refusals"]}[stage]
    assert all(re.search(rf"(Samples of the step: |, ){name}[:-]", message) for name in samples), message
    assert f"{stage}.learning_rate" in message and f"{tmp_path}/run/{stage}/checkpoints" in message
    assert not (tmp_path / "run" / stage / "model").exists()


LORA = ["--refine.adapter", "lora", "--align.adapter", "lora"]
DPO = ["--align.method", "dpo", "--data.preferences.rows", "12", "--align.global_batch", "4"]


@pytest.mark.parametrize("adapter", [[], LORA])
@pytest.mark.parametrize("stage", ["refine", "align", "align by DPO"])
@pytest.mark.parametrize("zero", [0, 2])  # under ZeRO-3 the norm is computed in float64, and can be clipped
def test_gradient_that_is_not_finite(failing, model, tmp_path, stage, adapter, zero):
    """The model computes what it did, with activations of 1e30 inside, so that gradients overflow."""
    folder = shutil.copytree(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if re.search(r"layers\.0\..*layernorm", name):
            weights[name] *= 1e30
        elif re.search(r"layers\.0\..*(q|k|v|gate|up)_proj", name):
            weights[name] *= 1e-30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    name, *by_dpo = stage.split(" by ")
    options = ["--model.source", folder, "--stages", f"[{name}]", "--output", tmp_path, *adapter]
    options += [*(DPO if by_dpo else []), "--deepspeed", f"ds_configs/zero{zero}.json"]
    message = failing(*options, code=1)
    assert message.startswith(f"{name}: the gradient is not finite at step 1 (norm "), message
    assert "no weight was changed by it. Samples of the step: " in message and f"{name}.learning_rate" in message
    assert not list((tmp_path / "run" / name / "checkpoints").glob("step-*"))
    assert not (tmp_path / "run" / name / "model").exists()


def test_loss_that_is_not_finite_at_a_later_step(failing, with_weight, model, tmp_path):
    """The last checkpoint does not change, and each further attempt continues from it."""
    token = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(RARE)
    folder = with_weight("model.embed_tokens.weight", math.nan, row=token)
    count = len(ROWS["general"])
    second = draw("0/align", 2 * count, 6, 6)  # of general rows, then refusals
    poisoned = next(index for index in second if index < count)
    rows = [{**row, "id": f"row {index}"} for index, row in enumerate(ROWS["general"])]
    rows[poisoned]["prompt"] += RARE
    options = ["--model.source", folder, "--data.general", write_rows(tmp_path / "general.jsonl", rows)]
    options += ["--stages", "[align]", "--align.global_batch", "6", "--checkpoint.every_steps", "1"]
    options += ["--output", tmp_path]
    message = failing(*options, code=1)
    assert message.startswith("align: the loss is nan at step 2") and f"row {poisoned}" in message
    checkpoints = tmp_path / "run/align/checkpoints"
    before = snapshot(checkpoints)
    assert "step-00000001/manifest.json" in before
    assert failing(*options, code=1) == message
    assert snapshot(checkpoints) == before
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/align/metrics.jsonl").read_text().splitlines()]
    assert steps == [1]
