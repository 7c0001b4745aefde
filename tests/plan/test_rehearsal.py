"""A rehearsal extrapolated from two short models equals that of the full depth."""

import pytest
from tiny import make_model

from dcr_ds.plan import rehearsal
from dcr_ds.plan.passes import Work
from dcr_ds.plan.rehearsal import rehearse
from dcr_ds.recipe import load_recipe


def recipe_of(layer: int, checkpointing: bool, adapter: str):
    values = {"model.dtype": "float32", "model.attention": "sdpa", "refine.layer": layer, "align.adapter": adapter}
    values |= {"model.activation_checkpointing": checkpointing, "model.kernels": "none"}
    return load_recipe(None, [(name, str(value)) for name, value in values.items()])


@pytest.mark.parametrize(
    ("kind", "checkpointing", "adapter"),
    [
        ("refine", False, "none"),
        ("retain", True, "none"),
        ("whole", False, "none"),
        ("align", False, "none"),
        ("dpo", True, "lora"),
    ],
)
def test_memory_is_extrapolated_over_depth(tmp_path, monkeypatch, kind, checkpointing, adapter):
    folder = make_model(tmp_path / "deep", layers=8, tied=False)
    recipe, work = recipe_of(4, checkpointing, adapter), Work(kind, 4, 32)
    extrapolated = rehearse(recipe, folder, work, device="cpu")
    monkeypatch.setattr(rehearsal, "_CACHE", {})
    monkeypatch.setattr(rehearsal, "_period", lambda config: config.num_hidden_layers)
    direct = rehearse(recipe, folder, work, device="cpu")
    assert [(event.block, event.gradient) for event in extrapolated.events] == [
        (event.block, event.gradient) for event in direct.events
    ]
    assert [event.peak for event in extrapolated.events] == pytest.approx(
        [event.peak for event in direct.events], rel=0.01
    )
    for name in ("forward", "rest", "kept", "flops", "forward_flops"):
        assert getattr(extrapolated, name) == pytest.approx(getattr(direct, name), rel=0.01), name


def test_a_mixture_computes_with_the_experts_of_each_token(tmp_path):
    """Operations grow with the experts per token; experts without tokens cost nothing."""
    counted = []
    for experts in (1, 2):
        folder = make_model(tmp_path / f"moe{experts}", "qwen3_moe", tied=False, num_experts_per_tok=experts)
        recipe = load_recipe(None, [("model.dtype", "bfloat16"), ("model.attention", "sdpa"), ("refine.layer", "2")])
        counted.append(rehearse(recipe, folder, Work("refine", 4, 32)).flops)
    width, inner, tokens, blocks = 32, 24, 4 * 32, 2
    # an expert's gate, up and down: two operations per weight forward, twice as many backward
    assert counted[1] - counted[0] == 3 * 2 * 3 * width * inner * tokens * blocks
