"""Every shipped DeepSpeed configuration trains, clips to the recipe's norm and reports the gradient norm."""

import pytest
import torch
from small_engine import trained_weights

from dcr_ds.engine.build import build_engine, gradient_norm, stage_config
from dcr_ds.engine.config import read_config
from dcr_ds.recipe import load_recipe


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", ["zero0", "zero1", "zero2", "zero3", "zero3_offload"])
def test_shipped_configuration_trains_and_reports_the_gradient_norm(ranks, config, dtype):
    recipe = load_recipe(None, [
        ("deepspeed", f"ds_configs/{config}.json"), ("model.dtype", dtype),
        ("refine.max_grad_norm", "0.5"), ("refine.learning_rate", "0.1"),
    ])  # fmt: skip
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)).to(getattr(torch, dtype))
    model[0].bias.requires_grad_(False)
    x = torch.randn(16, 8, dtype=getattr(torch, dtype))
    model(x).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).float().norm()
    model.zero_grad(set_to_none=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    resolved = stage_config(read_config(recipe), recipe.refine, dtype, ranks)
    engine = build_engine(model, recipe.refine, resolved, "constant", 4, ranks)
    engine.backward(engine(x).square().mean(), scale_wrt_gas=False)
    engine.step()
    assert gradient_norm(engine) == pytest.approx(float(expected), rel=2e-2 if dtype == "bfloat16" else 1e-5)
    after = trained_weights(engine, ranks)
    assert after.keys() == {name for name, p in before.items() if name != "0.bias"}
    assert all(not torch.equal(after[name], before[name]) for name in after)
