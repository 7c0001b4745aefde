"""A checkpoint of a run with 4-bit weights contains only trained weights, and resumes bit for bit."""

import pytest
import torch
from small_engine import trained_weights
from tiny import make_model

from dcr_ds.engine.build import build_engine, checkpoint_activations, stage_config
from dcr_ds.engine.checkpoint.checkpoints import Checkpoints
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.trunk import load_trunk
from dcr_ds.recipe import LoraSection, StageSection

STAGE = StageSection(learning_rate=1e-2, optimizer="adamw8bit")
IDS = torch.arange(3, 43).view(2, 20)


def make_engine(source, zero, ranks, **lora):
    trunk = load_trunk(source, 2, torch.float32, "sdpa", "nf4", ranks.device)
    checkpoint_activations(trunk)
    torch.manual_seed(0)
    model = add_lora(trunk, LoraSection(rank=4, **lora), "refine.lora").train()
    config = stage_config({"zero_optimization": {"stage": zero}}, STAGE, "float32", ranks)
    return build_engine(model, STAGE, config, "constant", 9, ranks)


def train(engine, steps):
    for _ in range(steps):
        engine.backward(engine(input_ids=IDS).last_hidden_state.square().mean(), scale_wrt_gas=False)
        engine.step()


@pytest.mark.parametrize(
    ("model_type", "zero", "lora"),
    [
        ("llama", 0, {}),
        ("llama", 2, {}),
        ("llama", 3, {}),
        ("llama", 2, {"dora": True}),
        ("llama", 2, {"rslora": True}),
        ("mixtral", 0, {}),
        ("mixtral", 2, {}),
    ],
    ids=str,
)
def test_a_quantised_run_resumes_bit_for_bit(tmp_path, ranks, model_type, zero, lora):
    source = make_model(tmp_path / "model", model_type, hidden_size=128, intermediate_size=256, head_dim=32)
    engine = make_engine(source, zero, ranks, **lora)
    train(engine, 2)
    checkpoints = Checkpoints(engine, tmp_path / "checkpoints", 1, ranks)
    checkpoints.save(2, {})
    checkpoints.wait_until_saved()
    checkpoints.close()
    train(engine, 2)
    resumed = make_engine(source, zero, ranks, **lora)
    assert Checkpoints(resumed, tmp_path / "checkpoints", 1, ranks).load_newest() == (2, {})
    train(resumed, 2)
    expected, resumed_weights = trained_weights(engine, ranks), trained_weights(resumed, ranks)
    assert all(torch.equal(resumed_weights[name], expected[name]) for name in expected)
    assert any(weight.abs().max() > 0 for name, weight in expected.items() if "lora_B" in name)

    trained = sum(weight.numel() for weight in expected.values())
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*.pt"))
    assert size < 16 * trained  # weights, master weights and moments; the frozen trunk would double it
