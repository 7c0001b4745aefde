"""LoRA: only the adapter trains, and the merged model is the wrapped one; attention kernels by model and device."""

import pytest
import torch
from tiny import make_model

from dcr_ds.errors import UserError
from dcr_ds.models.adapters import add_lora, merge_lora, save_lora
from dcr_ds.models.load import load_causal_lm, resolve_attention
from dcr_ds.recipe import LoraSection

CPU = torch.device("cpu")
IDS = torch.arange(3, 43).view(2, 20)


def wrapped(source, **lora):
    torch.manual_seed(0)
    return add_lora(load_causal_lm(source, torch.float32, "sdpa", CPU), LoraSection(**lora)).eval()


def moved(model):
    """The adapter as after some training: away from zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def trained(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_only_the_adapter_trains(tmp_path, model_type):
    model = wrapped(make_model(tmp_path, model_type, tied=False), rank=4)
    assert trained(model) and all("lora_" in name for name in trained(model))
    model(input_ids=IDS).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is ("lora_" in name)


def test_all_linear_is_every_projection_and_not_the_head(tmp_path):
    names = {name.split(".lora_")[0].split(".")[-1] for name in trained(wrapped(make_model(tmp_path)))}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_new_adapter_changes_nothing(tmp_path):
    source = make_model(tmp_path)
    base = logits(load_causal_lm(source, torch.float32, "sdpa", CPU))
    assert torch.equal(logits(wrapped(source)), base)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [{}, {"rank": 4, "alpha": 3, "targets": ["q_proj", "down_proj"]}], ids=["all", "some"])
def test_the_merged_model_is_the_wrapped_one(tmp_path, tied, lora):
    source = make_model(tmp_path / "model", tied=tied)
    model = moved(wrapped(source, **lora))
    save_lora(model, trained(model), tmp_path / "adapter")
    merged = merge_lora(source, tmp_path / "adapter", torch.float32)
    expected, base = logits(model), logits(load_causal_lm(source, torch.float32, "sdpa", CPU))
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name]


def test_saved_adapters_are_whole(tmp_path):
    from safetensors.torch import load_file

    model = moved(wrapped(make_model(tmp_path / "model"), rank=4))
    weights = trained(model)
    save_lora(model, weights, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(weights) == 2 * 7 * 4  # A and B, projections, blocks
    for name, weight in weights.items():
        assert torch.equal(saved[name.replace(".default.", ".")], weight)


@pytest.mark.parametrize("targets", [["q_prj"], "q_prj"])
def test_targets_that_are_in_no_model_are_named(tmp_path, targets):
    with pytest.raises(UserError, match=r"align\.lora\.targets: .*q_prj"):
        wrapped(make_model(tmp_path), targets=targets)


@pytest.mark.parametrize(
    ("asked", "model_type", "wanted"),
    [
        ("auto", "llama", "sdpa"),
        ("auto", "gemma2", "eager"),
        ("auto", "gemma3_text", "sdpa"),
        ("eager", "llama", "eager"),
        ("sdpa", "qwen2", "sdpa"),
        ("eager", "gemma2", "eager"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_on_a_cpu(asked, model_type, wanted, dtype):
    kernel, reason = resolve_attention(asked, model_type, dtype, CPU)
    assert kernel == wanted
    assert "no GPU" in reason if asked == "auto" else reason == "as asked"


@pytest.mark.parametrize(
    ("asked", "model_type", "why"),
    [
        ("flash_attention_2", "llama", "cannot be used: no GPU; say auto or sdpa"),
        ("sdpa", "gemma2", "gemma2 caps its attention logits, which sdpa cannot; say auto or eager"),
    ],
)
def test_attention_that_cannot_work_is_refused(asked, model_type, why):
    with pytest.raises(UserError, match=f"model.attention: .*{why}"):
        resolve_attention(asked, model_type, "bfloat16", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float32_on_a_gpu_is_not_for_flash_attention():
    assert resolve_attention("auto", "llama", "float32", torch.device("cuda"))[0] == "sdpa"
    with pytest.raises(UserError, match="float32 training"):
        resolve_attention("flash_attention_2", "llama", "float32", torch.device("cuda"))
