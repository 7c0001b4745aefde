"""bf16 training keeps fp32 master weights under every ZeRO stage, so that steps too small for bf16 are not lost."""

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from small_engine import trained_weights

from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.recipe import StageSection

STEPS, RATE = 60, 1e-5  # AdamW moves a weight by the learning rate per step while its gradient keeps its sign
BEFORE = torch.tensor(0.1).bfloat16().item()


def master_weights(engine, zero):
    if zero == 0:  # of an optimizer that safe_get_full_fp32_param does not support
        return engine.optimizer.fp32_groups[0][0]
    return safe_get_full_fp32_param(next(engine.module.parameters()))


def make_engine(ranks, zero, stage):
    model = torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    torch.nn.init.constant_(model.weight, BEFORE)
    config = stage_config({"zero_optimization": {"stage": zero}}, stage, "bfloat16", ranks)
    return build_engine(model, stage, config, "constant", STEPS, ranks)


def test_building_an_engine_does_not_decay_the_masters(ranks):
    """DeepSpeed takes a step on gradients of 0 under ZeRO-0."""
    engine = make_engine(ranks, 0, StageSection(learning_rate=0.1, weight_decay=1.0))
    assert set(master_weights(engine, 0).flatten().tolist()) == {BEFORE}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_steps_too_small_for_bfloat16_accumulate(ranks, zero):
    assert torch.tensor(BEFORE - RATE).bfloat16().item() == BEFORE  # a single step is lost to rounding
    engine = make_engine(ranks, zero, StageSection(learning_rate=RATE))
    for step in range(STEPS):
        engine.backward(engine(torch.ones(2, 4, dtype=torch.bfloat16)).sum(), scale_wrt_gas=False)
        engine.step()
        if step == 0:  # under ZeRO-0 DeepSpeed has taken one before, which counted
            moved = BEFORE - master_weights(engine, zero).flatten()[0].item()
            assert moved == pytest.approx(RATE, rel=0.02)
    master = master_weights(engine, zero).detach()
    assert master.dtype == torch.float32
    assert master.flatten().tolist() == pytest.approx([BEFORE - STEPS * RATE] * 12, abs=RATE / 2)
    weight = trained_weights(engine, ranks, masters=False)["weight"]
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, master.bfloat16()) and (weight < BEFORE).all()
    exported = trained_weights(engine, ranks)["weight"]
    assert torch.equal(exported, weight if zero == 0 else master)
