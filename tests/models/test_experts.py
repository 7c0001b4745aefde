"""Mixtures of experts: 4-bit experts, adapters on them, frozen routers, and what is written back."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model

from dcr_ds.engine.resolve import check_device
from dcr_ds.errors import UserError
from dcr_ds.models.adapters import add_lora, write_trained
from dcr_ds.models.check import build_on_meta
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.experts import expert_tensors, freeze_routers, has_experts
from dcr_ds.models.four_bit import import_bitsandbytes
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.trunk import load_trunk
from dcr_ds.recipe import LoraSection, Recipe
from dcr_ds.recipe.layout import StageFolder

CPU = torch.device("cpu")
LAYER = 2
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "moe_intermediate_size": 64}
IDS = torch.arange(3, 43).view(2, 20)
MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"]
ALL_MIXTURES = [*MIXTURES, "olmoe", "glm4_moe", "qwen3_5_moe_text"]


def mixture(folder, model_type, **sizes):
    return make_model(folder, model_type, tied=False, **WIDE | {"shared_expert_intermediate_size": 64} | sizes)


def trunk_of(source, dtype=torch.float32):
    return load_trunk(source, LAYER, dtype, "eager", "nf4", CPU)


@pytest.mark.parametrize("model_type", ALL_MIXTURES)
def test_routers_are_frozen_and_nothing_else(tmp_path, model_type):
    model = build_on_meta(mixture(tmp_path, model_type))
    freeze_routers(model)
    assert has_experts(model_config(tmp_path))
    frozen = {name.split(".", 3)[3] for name, weight in model.named_parameters() if not weight.requires_grad}
    routers = {
        "gpt_oss": {"mlp.router.weight", "mlp.router.bias"},
        "qwen2_moe": {"mlp.gate.weight", "mlp.shared_expert_gate.weight"},
        "qwen3_5_moe_text": {"mlp.gate.weight", "mlp.shared_expert_gate.weight"},
    }
    assert frozen == routers.get(model_type, {"mlp.gate.weight"})


@pytest.mark.parametrize("model_type", ["llama", "qwen3_5_text", "gemma2"])
def test_dense_models_have_no_routers_and_no_experts(tmp_path, model_type):
    model = build_on_meta(make_model(tmp_path, model_type))
    freeze_routers(model)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not list(expert_tensors(model)) and not has_experts(model_config(tmp_path))


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_are_in_4_bits_and_give_the_same_hidden_states_in_trunk_and_model(tmp_path, model_type):
    source = mixture(tmp_path, model_type)
    exact = load_causal_lm(source, torch.float32, "eager", CPU)
    model, trunk = load_causal_lm(source, torch.float32, "eager", CPU, "nf4"), trunk_of(source).eval()
    rounded = list(expert_tensors(model))
    assert len(rounded) == 2 * 4 and len(list(expert_tensors(trunk))) == 2 * LAYER
    assert all(holder.parametrizations[name].original.dtype == torch.uint8 for _, holder, name in rounded)
    for (_, holder, name), (_, original, _) in zip(rounded, expert_tensors(exact), strict=True):
        weight, expected = getattr(holder, name), getattr(original, name)
        assert weight.shape == expected.shape and 0.05 < (weight - expected).norm() / expected.norm() < 0.12
    with torch.no_grad():
        hidden = model(input_ids=IDS, output_hidden_states=True).hidden_states[LAYER]
        assert torch.equal(trunk(input_ids=IDS).last_hidden_state, hidden)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_adapters_on_4_bit_experts_train_and_are_merged_into_the_source(tmp_path, model_type):
    """Gradients equal those over the dequantised weights; routers have no adapter and keep their bytes."""
    source = mixture(tmp_path / "source", model_type)
    torch.manual_seed(0)
    model = add_lora(trunk_of(source), LoraSection(rank=4), "refine.lora").train()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(torch.randn_like(weight) * 0.05)
    plain = add_lora(dequantised(trunk_of(source)), LoraSection(rank=4), "refine.lora").train()
    plain.load_state_dict(trained, strict=False)
    for each in (model, plain):
        each.gradient_checkpointing_enable({"use_reentrant": False})
        each(input_ids=IDS).last_hidden_state.square().mean().backward()
    others = {name: weight.grad for name, weight in plain.named_parameters() if weight.requires_grad}
    assert trained.keys() == others.keys()
    assert any(".experts." in name for name in trained) and not any("gate.lora" in name for name in trained)
    for name, weight in trained.items():
        torch.testing.assert_close(weight.grad, others[name], rtol=1e-3, atol=1e-5 * float(others[name].abs().max()))

    first, second = (model(input_ids=IDS).last_hidden_state.detach() for _ in range(2))
    assert torch.equal(first, second)  # adapters of one pass are gone in the next
    before_step = model(input_ids=IDS).last_hidden_state.detach()
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(torch.randn_like(weight) * 0.05)
    assert not torch.equal(model(input_ids=IDS).last_hidden_state, before_step)  # nothing stale is kept

    write_trained(model, trained, source, StageFolder(tmp_path), prefix="model.")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and all(int(name.split(".")[2]) < LAYER for name in changed)
    assert any("expert" in name for name in changed) and not any("gate.weight" in n or "router" in n for n in changed)


def dequantised(trunk):
    """Replace 4-bit weights by the numbers that they stand for."""
    from torch.nn.utils.parametrize import remove_parametrizations

    functional = import_bitsandbytes("model.quantize").functional
    for _, holder, name in list(expert_tensors(trunk)):
        weight = getattr(holder, name).detach().clone()
        remove_parametrizations(holder, name, leave_parametrized=False)
        setattr(holder, name, torch.nn.Parameter(weight, requires_grad=False))
    for module in list(trunk.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Linear4bit":
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight.data = functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                if child.bias is not None:
                    linear.bias.data = child.bias.data
                setattr(module, name, linear.requires_grad_(False))
    return trunk


def test_widths_of_experts_that_a_cpu_cannot_dequantise_are_an_error(tmp_path):
    source = mixture(tmp_path, "qwen3_moe", moe_intermediate_size=48)
    with pytest.raises(UserError, match="model.quantize: .*multiple of 64, and down_proj of the experts is 48 wide"):
        trunk_of(source)


def test_4_bit_experts_need_activation_checkpointing(tmp_path):
    config = model_config(mixture(tmp_path, "mixtral"))
    adapters = {"refine": {"adapter": "lora"}, "align": {"adapter": "lora"}}
    recipe = Recipe.model_validate({"model": {"quantize": "nf4"}} | adapters)
    with pytest.raises(UserError, match="model.activation_checkpointing: set it to true with model.quantize: nf4"):
        check_device(recipe, config, CPU)
    model = {"quantize": "nf4", "activation_checkpointing": True}
    check_device(Recipe.model_validate({"model": model} | adapters), config, CPU)


@pytest.mark.parametrize("option", [{"dora": True}, {"dropout": 0.1}], ids=str)
def test_options_that_peft_has_for_linear_layers_only_are_refused_on_experts(tmp_path, option):
    model = build_on_meta(mixture(tmp_path, "mixtral"))
    with pytest.raises(UserError, match=f"align.lora.{next(iter(option))}: peft has it for linear layers only"):
        add_lora(model, LoraSection(**option), "align.lora")
    add_lora(model, LoraSection(targets=["q_proj", "v_proj"], **option), "align.lora")


def test_a_frozen_router_gets_no_adapter(tmp_path):
    model = build_on_meta(mixture(tmp_path, "mixtral"))
    freeze_routers(model)
    with pytest.raises(UserError, match=r"^align.lora.targets: .*mlp.gate is a router, and model.freeze_router"):
        add_lora(model, LoraSection(targets=["q_proj", "gate"]), "align.lora")
