"""LoRA: only the adapter trains, and the merged model equals the wrapped one; attention by model and device."""

import importlib.metadata
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models import merge
from dcr_ds.models.adapters import add_lora, save_lora, write_trained
from dcr_ds.models.load import NO_GPU, flash_attention_problem, load_causal_lm, resolve_attention
from dcr_ds.models.merge import merge_lora
from dcr_ds.models.trunk import load_trunk
from dcr_ds.recipe import LoraSection
from dcr_ds.recipe.layout import StageFolder

CPU = torch.device("cpu")
LAYER = 2
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # blocks of 64 values are quantised together
IDS = torch.arange(3, 43).view(2, 20)


def wrapped(source, **lora):
    torch.manual_seed(0)
    return add_lora(load_causal_lm(source, torch.float32, "sdpa", CPU), LoraSection(**lora), "align.lora").eval()


def moved(model):
    """Set the adapter to random values, as after some training."""
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


def test_all_linear_means_every_projection_except_the_head(tmp_path):
    names = {name.split(".lora_")[0].split(".")[-1] for name in trained(wrapped(make_model(tmp_path)))}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_new_adapter_changes_nothing(tmp_path):
    source = make_model(tmp_path)
    base = logits(load_causal_lm(source, torch.float32, "sdpa", CPU))
    assert torch.equal(logits(wrapped(source)), base)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [{}, {"rank": 4, "alpha": 3, "targets": ["q_proj", "down_proj"]}], ids=["all", "some"])
def test_the_merged_model_equals_the_wrapped_one(tmp_path, tied, lora):
    source = make_model(tmp_path / "model", tied=tied)
    model = moved(wrapped(source, **lora))
    save_lora(model, trained(model), source, tmp_path / "adapter")
    merge_lora(source, tmp_path / "adapter", tmp_path / "merged")
    merged = load_causal_lm(tmp_path / "merged", torch.float32, "sdpa", CPU)
    expected, base = logits(model), logits(load_causal_lm(source, torch.float32, "sdpa", CPU))
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_merge_in_memory_keeps_the_precision_of_the_weights(tmp_path):
    """Not that of config.json, which rounded all weights to bfloat16."""
    source = make_model(tmp_path / "model", layers=1)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    model = moved(wrapped(source, rank=4, dora=True))
    stage = StageFolder(tmp_path / "align")
    write_trained(model, trained(model), source, stage)
    merged = load_causal_lm(stage.model, torch.float32, "sdpa", CPU)
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)


@pytest.mark.parametrize("lora", [{"dora": True}, {"rslora": True}, {"dora": True, "rslora": True}], ids=str)
def test_variants_of_lora_are_those_of_peft(tmp_path, lora):
    """Output, gradients and merged weights; α = 6 and r = 4, so that α / √r = 3."""
    source = make_model(tmp_path / "model", tied=False)
    model = moved(wrapped(source, rank=4, alpha=6, **lora))
    options = {"use_dora": lora.get("dora", False), "use_rslora": lora.get("rslora", False)}
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **options)
    own = get_peft_model(load_causal_lm(source, torch.float32, "sdpa", CPU), config).eval()
    own.load_state_dict(trained(model), strict=False)
    gradients = []
    for each in (model, own):
        each(input_ids=IDS).logits.square().mean().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in each.named_parameters() if parameter.requires_grad}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    save_lora(model, trained(model), source, tmp_path / "adapter")
    merge_lora(source, tmp_path / "adapter", tmp_path / "merged")
    merged = load_causal_lm(tmp_path / "merged", torch.float32, "sdpa", CPU).state_dict()
    assert all(torch.equal(weight, merged[name]) for name, weight in own.merge_and_unload().state_dict().items())
    scaled = 3 if lora.get("rslora") else 1.5
    assert {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_B")} == {scaled}


def of_peft(source, folder, **options):
    """A model with an adapter of peft's own, which is saved to a folder."""
    base = load_causal_lm(source, torch.float32, "sdpa", CPU)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"]} | options)
    model = moved(get_peft_model(base, config).eval())
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("llama", {"init_lora_weights": "olora"}),
     ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]})],
)  # fmt: skip
def test_adapters_that_change_more_than_their_products_are_merged_whole(tmp_path, model_type, options):
    """PiSSA and OLoRA subtract their start from the base; `lora_bias` adds to the bias."""
    source = make_model(tmp_path / "model", model_type, layers=1, tied=False)
    model = of_peft(source, tmp_path / "adapter", **options)
    merge_lora(source, tmp_path / "adapter", tmp_path / "merged")
    merged = load_causal_lm(tmp_path / "merged", torch.float32, "sdpa", CPU)
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"init_lora_weights": "pissa_niter_2"}, "not recorded"), ({"init_lora_weights": "lora_ga"}, "not recorded"),
     ({"alora_invocation_tokens": [5]}, "cannot merge")],
)  # fmt: skip
def test_adapters_that_cannot_be_merged_are_refused(tmp_path, options, problem):
    source = make_model(tmp_path / "model", layers=1)
    of_peft(source, tmp_path / "adapter", **options)
    with pytest.raises(UserError, match=problem):
        merge_lora(source, tmp_path / "adapter", tmp_path / "merged")


def test_dora_over_4_bit_weights_starts_as_the_quantised_model(tmp_path):
    trunk = load_trunk(make_model(tmp_path, **WIDE), LAYER, torch.float32, "sdpa", "nf4", CPU).eval()
    before = trunk(input_ids=IDS).last_hidden_state.detach()
    after = add_lora(trunk, LoraSection(rank=4, dora=True), "refine.lora")(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [("llama", "all-linear"), ("qwen3", "all-linear"), ("phi3", "all-linear"), ("mixtral", ["q_proj", "v_proj"])],
)
def test_an_adapter_merged_weight_by_weight_equals_one_merged_in_memory(tmp_path, model_type, targets, monkeypatch):
    source = make_model(tmp_path / "model", model_type, tied=False, dtype=torch.bfloat16)
    model = moved(wrapped(source, rank=4, targets=targets))
    save_lora(model, trained(model), source, tmp_path / "adapter")
    merge_lora(source, tmp_path / "adapter", tmp_path / "by weight")
    monkeypatch.setattr(merge, "NOT_BY_WEIGHT", ("r",))
    merge_lora(source, tmp_path / "adapter", tmp_path / "in memory")
    by_weight, in_memory, before = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "by weight", tmp_path / "in memory", source)
    )
    assert by_weight == in_memory != before


def test_saved_adapters_are_complete(tmp_path):
    source = make_model(tmp_path / "model")
    model = moved(wrapped(source, rank=4))
    weights = trained(model)
    save_lora(model, weights, source, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(weights) == 2 * 7 * 4  # A and B, projections, blocks
    for name, weight in weights.items():
        assert torch.equal(saved[name.replace(".default.", ".")], weight)


@pytest.fixture(params=["none", "nf4"])
def refined(request, tmp_path):
    """A bf16 model with four blocks, a trained adapter on the two blocks of its trunk, and what stage 1 writes."""
    source = make_model(tmp_path / "source", dtype=torch.bfloat16, **WIDE)
    trunk = load_trunk(source, LAYER, torch.float32, "sdpa", request.param, CPU)
    model = moved(add_lora(trunk, LoraSection(rank=4, alpha=6), "refine.lora"))
    write_trained(model, trained(model), source, StageFolder(tmp_path), prefix="model.")
    return source, model, tmp_path


def test_an_adapter_of_the_trunk_is_merged_into_the_source_weights(refined):
    """Not into 4-bit weights: the result is the source's weight plus the update, rounded to its dtype."""
    source, model, folder = refined
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    updates = {
        "model." + name.removeprefix("base_model.model.") + ".weight": 1.5
        * (module.lora_B.default.weight @ module.lora_A.default.weight).detach()
        for name, module in model.named_modules()
        if hasattr(module, "lora_B")
    }
    assert len(updates) == 7 * LAYER
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.bfloat16
        if name in updates:
            exact = weight.float() + updates[name]
            assert not torch.equal(after[name], weight)
            torch.testing.assert_close(after[name].float(), exact, rtol=2**-7, atol=2**-9)
        else:
            assert torch.equal(after[name], weight), name


@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "gemma2", "gemma3_text", "qwen3_moe", "mixtral"])
def test_the_refined_model_up_to_its_layer_equals_the_trunk_with_its_adapter(tmp_path, model_type):
    source = make_model(tmp_path / "source", model_type, tied=False)
    trunk = load_trunk(source, LAYER, torch.float32, "eager")
    model = moved(add_lora(trunk, LoraSection(rank=4), "refine.lora")).eval()
    write_trained(model, trained(model), source, StageFolder(tmp_path), prefix="model.")
    full_model = load_causal_lm(tmp_path / "model", torch.float32, "eager", CPU)
    with torch.no_grad():
        expected = model(input_ids=IDS).last_hidden_state
        states = full_model(input_ids=IDS, output_hidden_states=True).hidden_states[LAYER]
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_an_adapter_of_the_trunk_fits_the_whole_model(refined):
    """Plain peft applies it to the whole model, with the same result as the merged model."""
    source, _, folder = refined
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base, folder / "adapter").eval()
    merged = load_causal_lm(folder / "model", torch.float32, "sdpa", CPU)
    expected = logits(merged)
    torch.testing.assert_close(logits(with_adapter), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    assert not [name for name, _ in with_adapter.named_parameters() if "lora_" in name and "layers.2." in name]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source) and config["task_type"] == "CAUSAL_LM"


def test_an_adapter_is_not_merged_onto_another_base(refined, tmp_path):
    source, _, folder = refined
    other = make_model(tmp_path / "other", seed=1, dtype=torch.bfloat16, **WIDE)
    with pytest.raises(UserError, match=rf"adapter: was trained on other weights.*{other}.*on: {source}"):
        merge_lora(other, folder / "adapter", folder / "merged")
    assert not (folder / "merged").exists()


def test_the_same_base_in_other_shards_is_accepted(refined):
    source, _, folder = refined
    sharded = folder / "sharded"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(sharded, max_shard_size="40KB")
    merge_lora(sharded, folder / "adapter", folder / "merged")
    once, again = (AutoModelForCausalLM.from_pretrained(folder / name).state_dict() for name in ("model", "merged"))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_an_adapter_of_a_deeper_model_is_not_loaded_in_part(tmp_path):
    base = load_causal_lm(make_model(tmp_path / "base"), torch.float32, "sdpa", CPU)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    shallow = make_model(tmp_path / "shallow", layers=2)
    with pytest.raises(UserError, match=r"has weights for 2 modules that the model .*shallow lacks \(model.layers.2"):
        merge.load_with_adapter(shallow, tmp_path / "adapter", torch.float32, "sdpa", CPU)


def test_an_adapter_of_another_kind_is_not_merged(refined):
    source, _, folder = refined
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.norm.weight": torch.ones(64)}, file)
    with pytest.raises(UserError, match="model.norm.weight, which is not a LoRA weight"):
        merge_lora(source, folder / "adapter", folder / "merged")


def test_an_adapter_that_lost_a_tensor_or_is_not_finite_is_not_merged(refined):
    """Merged, it would leave a weight as it was, or make it NaN, without a word."""
    source, _, folder = refined
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    damaged = {
        "this adapter does not fit the model .*Found missing adapter keys": {
            n: tensors[n] for n in tensors if n != name
        },
        "lora_B.weight is empty or not finite": tensors | {name: torch.full_like(tensors[name], torch.nan)},
    }
    for message, kept in damaged.items():
        save_file(kept, file)
        with pytest.raises(UserError, match=message):
            merge_lora(source, folder / "adapter", folder / "merged")
        assert not (folder / "merged").exists()
        with pytest.raises(UserError, match=message):
            merge.load_with_adapter(source, folder / "adapter", torch.float32, "sdpa", CPU)


@pytest.mark.parametrize("targets", [["q_prj"], "q_prj", ["q_proj", "q_prj"]])
def test_targets_that_are_in_no_model_are_named(tmp_path, targets):
    with pytest.raises(UserError, match=r"align\.lora\.targets: .*q_prj"):
        wrapped(make_model(tmp_path), targets=targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "is empty; use all-linear"),
        ("", "is empty; use all-linear"),
        ("[q", r"'\[q' as text is a regular expression .*unterminated character set.* a list of names"),
        ("q_proj", "'q_proj' as text is a regular expression for whole names .* a list of names"),
        (["self_attn"], r"peft has no adapter for \w+Attention; name linear layers"),
        (["q_proj", "input_layernorm"], r"peft has no adapter for \w+RMSNorm; name linear layers"),
    ],
)
def test_targets_that_cannot_have_an_adapter_are_named(tmp_path, targets, message):
    with pytest.raises(UserError, match=rf"align\.lora\.targets: {message}"):
        wrapped(make_model(tmp_path), targets=targets)


@pytest.mark.parametrize(
    ("attention", "model_type", "expected"),
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
def test_attention_on_a_cpu(attention, model_type, expected, dtype):
    kernel, reason = resolve_attention(attention, model_type, dtype, NO_GPU)
    assert kernel == expected
    assert "no GPU" in reason if attention == "auto" else reason == "as asked"


@pytest.mark.parametrize(
    ("attention", "model_type", "why"),
    [
        ("flash_attention_2", "llama", "cannot be used: no GPU; say auto or sdpa"),
        ("sdpa", "gemma2", "gemma2 caps its attention logits, which sdpa cannot; say auto or eager"),
    ],
)
def test_unsupported_attention_is_an_error(attention, model_type, why):
    with pytest.raises(UserError, match=f"model.attention: .*{why}"):
        resolve_attention(attention, model_type, "bfloat16", NO_GPU)


@pytest.mark.parametrize(
    ("installed", "why"), [({}, "flash-attn is not installed"), ({"flash-attn": "2.5.9"}, "2.5.9 is too old")]
)
def test_missing_or_old_flash_attn_is_named(monkeypatch, installed, why):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    problem = flash_attention_problem(torch.device("cuda"))
    assert resolve_attention("auto", "llama", "bfloat16", problem)[0] == "sdpa"
    with pytest.raises(UserError, match=f"flash_attention_2 cannot be used: .*{why}.*flash-attn>=2.7.*auto or sdpa"):
        resolve_attention("flash_attention_2", "llama", "bfloat16", problem)


def test_flash_attention_is_not_used_in_float32():
    assert resolve_attention("auto", "llama", "float32", "")[0] == "sdpa"
    with pytest.raises(UserError, match="float32 training"):
        resolve_attention("flash_attention_2", "llama", "float32", "")
