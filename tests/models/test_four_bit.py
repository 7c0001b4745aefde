"""4-bit weights: the trunk equals the quantised model up to block ℓ and stays unchanged; errors where unsupported."""

import importlib.metadata

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model

from dcr_ds.errors import UserError
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.four_bit import check_four_bit, import_bitsandbytes
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.trunk import load_trunk
from dcr_ds.recipe import LoraSection

CPU = torch.device("cpu")
LAYER = 2
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
IDS = torch.arange(3, 43).view(2, 20)
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"}


def trunk_of(source, dtype=torch.float32):
    return load_trunk(source, LAYER, dtype, "eager", "nf4", CPU)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "phi3"])
def test_h_equals_the_hidden_state_of_the_quantised_model_bit_for_bit(tmp_path, model_type):
    source = make_model(tmp_path, model_type, **WIDE)
    model = load_causal_lm(source, torch.float32, "eager", CPU, "nf4")
    with torch.no_grad():
        expected = model(input_ids=IDS, output_hidden_states=True).hidden_states[LAYER]
        assert torch.equal(trunk_of(source).eval()(input_ids=IDS).last_hidden_state, expected)


def test_the_source_weights_are_quantised(tmp_path):
    source = make_model(tmp_path, **WIDE)
    exact = load_file(source / "model.safetensors")
    functional = import_bitsandbytes("model.quantize").functional
    for name, weight in trunk_of(source).named_parameters():
        if weight.dtype == torch.uint8:
            rounded, original = functional.dequantize_4bit(weight.data, weight.quant_state), exact[f"model.{name}"]
            assert 0.05 < (rounded - original).norm() / original.norm() < 0.12, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_linear_layers_of_the_blocks_are_in_4_bits(tmp_path, dtype):
    source = make_model(tmp_path, tied=False, **WIDE)
    for model, blocks in ((trunk_of(source, dtype), LAYER), (load_causal_lm(source, dtype, "sdpa", CPU, "nf4"), 4)):
        quantised = {name for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
        assert len(quantised) == 7 * blocks
        for name, weight in model.named_parameters():
            assert (name in quantised) is (name.split(".")[-2] in PROJECTIONS), name
            assert weight.dtype == (torch.uint8 if name in quantised else dtype), name
        q = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
        assert q.weight.numel() == 64 * 64 / 2 and q.weight.quant_state.nested  # 2 per byte; scales quantised


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_in_eval_mode_changes_no_weight(tmp_path, dtype):
    """On CPUs with AVX512-BF16 bitsandbytes 0.50 permanently rounded its scales to bfloat16, for inputs of 32 rows."""
    trunk = trunk_of(make_model(tmp_path, **WIDE), dtype)
    with torch.no_grad():
        before = trunk.train()(input_ids=IDS).last_hidden_state
        during = trunk.eval()(input_ids=IDS).last_hidden_state
        after = trunk.train()(input_ids=IDS).last_hidden_state
    assert torch.equal(before, during) and torch.equal(before, after)


def test_a_checkpoint_has_no_statistics_of_frozen_weights(tmp_path):
    model = add_lora(trunk_of(make_model(tmp_path, **WIDE)), LoraSection(rank=4), "refine.lora")
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert set(model.state_dict()) <= names


def test_a_new_adapter_changes_nothing_and_only_it_trains(tmp_path):
    trunk = trunk_of(make_model(tmp_path, **WIDE))
    before = trunk(input_ids=IDS).last_hidden_state
    model = add_lora(trunk, LoraSection(rank=4), "refine.lora")
    after = model(input_ids=IDS).last_hidden_state
    assert torch.equal(before, after)
    after.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is ("lora_" in name), name


def test_widths_that_bitsandbytes_computes_wrongly_on_a_cpu_are_an_error(tmp_path):
    source = make_model(tmp_path, **WIDE | {"intermediate_size": 96})
    with pytest.raises(UserError, match="model.quantize: .*multiple of 64, and .*down_proj is 96 wide; use a GPU"):
        trunk_of(source)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_bitsandbytes_cannot_use_is_named():
    with pytest.raises(UserError, match=r"model.quantize: bitsandbytes cannot quantise on cuda .*dcr-ds\[qlora\]"):
        check_four_bit(torch.device("cuda"))
    check_four_bit(CPU)


def test_bitsandbytes_missing_or_too_old_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"model.quantize: .*not installed: pip install 'dcr-ds\[qlora\]'"):
        import_bitsandbytes("model.quantize")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49.2")
    with pytest.raises(UserError, match=r"model.quantize: .*0.50 or newer, this is 0.49.2: .*dcr-ds\[qlora\]"):
        import_bitsandbytes("model.quantize")
