"""Checkpoints with missing or unknown tensors, or quantised ones, are errors before training, found from headers."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import LlamaConfig

from dcr_ds.errors import UserError
from dcr_ds.models.check import build_on_meta, check_model, expected_shapes
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.splice import splice
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.models.trunk import load_trunk

TYPES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "qwen3_moe", "mixtral"]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("untied") / "model", layers=2, tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tied") / "model", layers=2)


@pytest.fixture
def changed(tmp_path):
    """A copy of a model with tensors changed by a function, in one file or with one shard per tensor."""

    def copy(model, change, sharded=False):
        folder = shutil.copytree(model, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors = change(tensors) or tensors
        if not sharded:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        (folder / "model.safetensors").unlink()
        for name, tensor in tensors.items():
            save_file({name: tensor}, folder / f"{name}.safetensors", metadata={"format": "pt"})
        index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}, "metadata": {"total_size": 1}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return copy


def set_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def without(tensors, name):
    return {other: tensor for other, tensor in tensors.items() if other != name}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_models_saved_by_transformers_pass(tmp_path, model_type, is_tied):
    check_model(make_model(tmp_path, model_type, layers=2, tied=is_tied))


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_each_missing_tensor_is_found(tmp_path, changed, model_type):
    source = make_model(tmp_path / "source", model_type, layers=1, tied=False)
    for name in load_file(source / "model.safetensors"):
        folder = changed(source, lambda tensors, name=name: without(tensors, name))
        with pytest.raises(UserError, match=f"^{folder}: .*{name}.*random"):
            check_model(folder)
        shutil.rmtree(folder)


CASES = {
    "names without the prefix": (
        lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
        r"lack the prefix 'model\.' \(embed_tokens.weight instead of .*load it with AutoModelForCausalLM and save",
    ),
    "a base model without its head": (
        lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items() if name != HEAD},
        r"lack the prefix 'model\.' .*no lm_head.weight either: use the whole model",
    ),
    "another width": (
        lambda tensors: tensors.update({NORM: torch.ones(7)}),
        rf"{NORM} has shape \[7\], config.json requires \[32\]",
    ),
    "a tensor that the architecture lacks": (
        lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}),
        "hold model.layers.1.self_attn.q_proj.bias, which the architecture in config.json does not have",
    ),
    "names with the prefix of torch.compile": (
        lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        r"have the prefix '_orig_mod\.' more \(_orig_mod\.model\.embed_tokens\.weight\), .* save the model inside it",
    ),
    "GPTQ weights without a note in the config": (
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(4, 4, dtype=torch.int32)}),
        r"quantised already \(model.layers.0.mlp.up_proj.qweight is I32\)",
    ),
    "FP8 weights": (
        lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.float8_e4m3fn)}),
        r"quantised already \(lm_head.weight is F8_E4M3\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_that_do_not_fit_the_architecture(untied, changed, case):
    change, message = CASES[case]
    folder = changed(untied, change)
    with pytest.raises(UserError, match=f"^{folder}: .*{message}"):
        check_model(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
def test_quantised_checkpoints_are_refused(untied, changed, method):
    folder = set_config(changed(untied, lambda tensors: None), quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=rf"quantised already \(config.json says {method}\).*model.quantize: nf4"):
        check_model(folder)


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "model.rotary_emb.inv_freq": torch.ones(4),
    "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
    "model.layers.1.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "model.norm.num_batches_tracked": torch.tensor(3),
    "model.position_ids": torch.arange(8)[None],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_stored_buffers_are_ignored(untied, changed, name):
    assert check_model(changed(untied, lambda tensors: tensors.update({name: BUFFERS[name]}))) == []


@pytest.mark.parametrize("name", ["v_head.summary.weight", "score.weight", "mtp.layers.0.fc.weight", "vision_tower.w"])
def test_other_heads_are_noted_and_kept(untied, changed, name):
    folder = changed(untied, lambda tensors: tensors.update({name: torch.ones(1, 32)}))
    assert check_model(folder) == [
        f"{folder}: the weights hold {name} that are not part of the language model: not used"
    ]


def block(tensors, number):
    return {
        name.replace(".1.", f".{number}."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith("model.layers.1.")
    }


def test_a_block_that_predicts_further_tokens_is_noted(untied, changed):
    folder = changed(untied, lambda tensors: tensors.update(block(tensors, 2)))
    set_config(folder, num_nextn_predict_layers=1)
    assert len(check_model(folder)) == 1
    set_config(folder, num_nextn_predict_layers=0)
    with pytest.raises(UserError, match=r"hold model.layers.2.* more tensors, which the architecture"):
        check_model(folder)


@pytest.mark.parametrize(
    "name",
    ["lm_head.bias", "model.layers.0.mlp.up_proj.lora_A.weight", "model.norm.bias", "layers.0.mlp.up_proj.weight"],
)
def test_tensors_that_would_change_the_results_are_refused(untied, changed, name):
    folder = changed(untied, lambda tensors: tensors.update({name: torch.ones(1, 32)}))
    with pytest.raises(UserError, match=f"hold {name}, which the architecture in config.json does not have"):
        check_model(folder)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_special_tokens_beyond_the_vocabulary_are_noted(untied, changed, name):
    folder = changed(untied, lambda tensors: None)
    (folder / "generation_config.json").write_text(json.dumps({name: [2, 300]}))
    file = folder / "generation_config.json"
    assert check_model(folder) == [f"{file}: {name} 300 is not in the vocabulary, which ends at 299 (vocab_size)"]
    keep_tokenizer(untied, None, folder)
    assert check_model(folder) == []
    assert json.loads(file.read_text())["eos_token_id"] == [2]


def test_a_pad_token_without_an_embedding_is_an_error(untied, changed):
    folder = set_config(changed(untied, lambda tensors: None), pad_token_id=300)
    with pytest.raises(UserError, match=r"config.json: pad_token_id 300 is not in the vocabulary, which ends at 299"):
        check_model(folder)


def test_a_config_that_cannot_be_built_is_named(untied, changed):
    folder = set_config(changed(untied, lambda tensors: None), hidden_act="no such function")
    with pytest.raises(UserError, match=r"config.json: transformers cannot build the model"):
        check_model(folder)


def test_a_tied_head_that_differs_is_refused(tied, changed):
    folder = changed(tied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] * 1.001}))
    with pytest.raises(UserError, match=f"tie_word_embeddings: true, but the weights hold a {HEAD} that differs"):
        check_model(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_stored_twice_is_exported_once(tied, changed, tmp_path, sharded):
    """The exported model computes the logits of the trained one; transformers loads it tied."""
    source = changed(tied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}), sharded)
    check_model(source)
    model = load_causal_lm(source, torch.float32, "eager", None)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    splice(model, dict(model.named_parameters()), source, tmp_path / "exported")
    check_model(tmp_path / "exported")
    exported = load_causal_lm(tmp_path / "exported", torch.float32, "eager", None)
    ids = torch.arange(3, 40)[None]
    assert exported.lm_head.weight is exported.model.embed_tokens.weight
    assert torch.equal(exported(ids).logits, model(ids).logits)


def test_a_trunk_is_written_without_the_second_head(tied, changed, tmp_path):
    source = changed(tied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    trunk = load_trunk(source, 1, torch.float32, "eager")
    trained = {name: weight.detach() * 2 for name, weight in trunk.named_parameters() if weight.requires_grad}
    splice(trunk, trained, source, tmp_path / "refined", "model.")
    written, before = load_file(tmp_path / "refined/model.safetensors"), load_file(tied / "model.safetensors")
    assert set(written) == set(before)
    assert {name.removeprefix("model.") for name in before if not torch.equal(written[name], before[name])} == set(
        trained
    )


def test_a_tied_head_is_counted_once(tied, untied):
    for folder in (tied, untied):
        model = build_on_meta(folder)
        stored = sum(map(math.prod, expected_shapes(model).values()))
        assert sum(weight.numel() for weight in model.parameters()) == stored


def test_a_70b_model_is_checked_from_its_headers(tmp_path):
    """The files are sparse, 140 GB in all."""
    LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ).save_pretrained(tmp_path)
    shapes = expected_shapes(build_on_meta(tmp_path))
    places = {}
    for number in range(30):
        header, end = {}, 0
        for name in list(shapes)[number::30]:
            begin, end = end, end + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        file = tmp_path / f"model-{number + 1:05}-of-00030.safetensors"
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        places |= dict.fromkeys(header, file.name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    before = bytes_read()
    check_model(tmp_path)
    assert bytes_read() - before < 2**24


def bytes_read() -> int:
    """By this process so far."""
    counters = Path("/proc/self/io").read_text()
    return int(re.search(r"rchar: (\d+)", counters)[1])
