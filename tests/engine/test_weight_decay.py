"""Weight decay applies to matrices only: not to norms, biases and embeddings, under every ZeRO stage and optimizer."""

import pytest
import torch
from small_engine import load_newest, save_checkpoint, trained_weights
from tiny import make_model

from dcr_ds.engine.build import build_engine, sharded_loading, stage_config
from dcr_ds.engine.optimizers import parameter_groups
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import load_causal_lm
from dcr_ds.recipe import LoraSection, StageSection

RATE, DECAY = 0.01, 0.5


def names(model, group):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_models(tmp_path, model_type, tied):
    model = load_causal_lm(make_model(tmp_path, model_type, layers=1, tied=tied), torch.float32, "eager", None)
    decayed, others = parameter_groups(model, DECAY)
    assert (decayed["weight_decay"], others["weight_decay"]) == (DECAY, 0)
    kept = names(model, others)
    assert kept == {
        name
        for name, weight in model.named_parameters()
        if weight.ndim == 1 or name == "model.embed_tokens.weight" or name.endswith("bias")
    }
    assert ("lm_head.weight" in names(model, decayed)) is not tied
    assert len(names(model, decayed)) + len(kept) == len(list(model.parameters()))


def test_one_group_without_weight_decay(tmp_path):
    model = torch.nn.Linear(2, 2)
    assert parameter_groups(model, 0.0) == [model.weight, model.bias]


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]])
def test_groups_of_adapters(tmp_path, targets):
    model = load_causal_lm(make_model(tmp_path, layers=1, tied=False), torch.float32, "eager", None)
    adapted = Likelihood(add_lora(model, LoraSection(targets=targets), "align.lora"), "chunked")
    decayed, *others = parameter_groups(adapted, DECAY)
    assert all(".lora_A." in name or ".lora_B." in name for name in names(adapted, decayed))
    embedded = {name for group in others for name in names(adapted, group)}
    assert {"lora_embedding_A" in name or "lora_embedding_B" in name for name in embedded} == (
        {True} if "embed_tokens" in targets else set()
    )


def make_engine(ranks, zero, optimizer="adamw", seed=0, offload=False):
    """A network with an embedding, a norm, biases and matrices, as transformers partitions it under ZeRO-3."""
    stage = StageSection(learning_rate=RATE, weight_decay=DECAY, optimizer=optimizer)
    section = {"stage": zero} | ({"offload_optimizer": {"device": "cpu"}} if offload else {})
    settings = {"zero_optimization": section}
    config = stage_config(settings, stage, "float32", ranks)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Embedding(7, 8), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1, bias=False)
    )
    return build_engine(network, stage, config, "constant", 9, ranks)


def train(engine, steps, scale=1.0):
    for step in steps:
        ids = torch.randint(7, (6,), generator=torch.Generator().manual_seed(step))
        engine.backward(engine(ids).square().sum() * scale, scale_wrt_gas=False)
        engine.step()


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_step_without_a_gradient_shrinks_matrices_only(ranks, zero, optimizer):
    engine = make_engine(ranks, zero, optimizer)
    before = trained_weights(engine, ranks)
    train(engine, [0], scale=0.0)
    after = trained_weights(engine, ranks)
    shrunk = {name for name in before if not torch.equal(before[name], after[name])}
    assert shrunk == {"1.weight", "3.weight"}
    for name in shrunk:
        assert torch.allclose(after[name], before[name] * (1 - RATE * DECAY))


def test_offloaded_optimizer_states(ranks):
    engine = make_engine(ranks, 2, offload=True)
    before = trained_weights(engine, ranks)
    train(engine, [0], scale=0.0)
    after = trained_weights(engine, ranks)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"1.weight", "3.weight"}


def test_shapes_of_partitioned_parameters(tmp_path, ranks):
    """Under ZeRO-3 transformers partitions parameters while it loads them: each of them is then a vector."""
    folder = make_model(tmp_path, layers=1, tied=False)
    stage = StageSection(learning_rate=RATE)
    with sharded_loading(stage_config({"zero_optimization": {"stage": 3}}, stage, "float32", ranks)):
        model = load_causal_lm(folder, torch.float32, "eager", None)
    assert all(hasattr(parameter, "ds_shape") for parameter in model.parameters())
    _, others = parameter_groups(model, DECAY)
    norms = ("input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.0.{name}.weight" for name in norms} | {"model.norm.weight", "model.embed_tokens.weight"}
    assert names(model, others) == expected


@pytest.mark.parametrize(("saved_under", "loaded_under"), [(0, 0), (1, 2), (2, 1), (2, 2), (3, 3)])
def test_steps_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path, ranks, saved_under, loaded_under):
    engine = make_engine(ranks, saved_under)
    train(engine, range(3))
    save_checkpoint(engine, tmp_path, 3, {}, keep=1, ranks=ranks)
    train(engine, range(3, 6))
    resumed = make_engine(ranks, loaded_under, seed=1)
    assert load_newest(resumed, tmp_path, ranks) == (3, {})
    train(resumed, range(3, 6))
    expected, weights = trained_weights(engine, ranks), trained_weights(resumed, ranks)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
