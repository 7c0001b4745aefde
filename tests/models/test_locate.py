"""Locating a model: any source becomes a folder of safetensors, and is converted only once."""

import multiprocessing
import os

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_conversation
from dcr_ds.models.checkpoint_files import model_config, weight_files
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.locate import base_fields, cache_folder, prepare_source
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import ModelSection


def test_a_local_folder_is_used_in_place(tmp_path):
    model = make_model(tmp_path, layers=2)
    assert prepare_source(ModelSection(source=str(model))) == model
    assert model_config(model)["model_type"] == "llama"
    assert weight_files(model) == [model / "model.safetensors"]


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    """It has none, and another version of the model would be trained in silence."""
    with pytest.raises(UserError, match="model.revision: v2 names a commit on the hub"):
        prepare_source(ModelSection(source=str(tmp_path), revision="v2"))


def test_the_base_of_an_adapter_is_read_at_the_revision_that_peft_recorded(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"revision": "0123abc"}')
    assert base_fields(tmp_path, "owner/base") == {"source": "owner/base", "revision": "0123abc"}
    assert base_fields(tmp_path, str(tmp_path)) == {"source": str(tmp_path), "revision": None}
    (tmp_path / "adapter_config.json").write_text('{"revision": null}')
    assert base_fields(tmp_path, "owner/base") == {"source": "owner/base", "revision": None}


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/model", "smollm2", "a/b/c", "nowhere.gguf"])
def test_an_unknown_source_is_an_error_without_a_download(source):
    with pytest.raises(UserError, match="model.source: "):
        prepare_source(ModelSection(source=source))


def test_a_recipe_in_place_of_a_model_is_named_as_one():
    with pytest.raises(UserError, match="recipes/smollm2-135m.yaml looks like a recipe, not like a model"):
        prepare_source(ModelSection(source="recipes/smollm2-135m.yaml"))


def make_gguf(file):
    """Write a tiny llama as llama.cpp does, its MLP in 8 bits; return the MLP's dequantised tensors."""
    words = [*sorted(vocabulary := make_tokenizer().get_vocab(), key=vocabulary.get), "ab"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(words.index("<|im_start|>"))
    writer.add_eos_token_id(words.index("<|im_end|>"))
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(0)
    shapes = {
        "attn_norm": (32,),
        "ffn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_gate": (64, 32),
        "ffn_up": (64, 32),
        "ffn_down": (32, 64),
    }
    shapes = {f"blk.{block}.{name}.weight": shape for block in (0, 1) for name, shape in shapes.items()}
    tensors = {}
    for name, shape in {"token_embd.weight": (len(words), 32), "output_norm.weight": (32,), **shapes}.items():
        values = generator.normal(size=shape).astype(np.float32)
        if ".ffn_" in name and "norm" not in name:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            tensors[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_model_is_dequantised_once(tmp_path, cache, capfd):
    tensors = make_gguf(tmp_path / "tiny.gguf")
    section = ModelSection(source=str(tmp_path / "tiny.gguf"))
    folder = prepare_source(section)
    assert folder.parent == cache == cache_folder()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_source(section) == folder
    assert capfd.readouterr().err.count("dequantising once") == 1
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert "quantization_config" not in model_config(folder)

    with safe_open(folder / "model.safetensors", "pt") as stream:
        assert {stream.get_tensor(name).dtype for name in stream.keys()} == {torch.bfloat16}
        for block, (name, ours) in ((b, n) for b in (0, 1) for n in (("ffn_up", "up"), ("ffn_down", "down"))):
            tensor = stream.get_tensor(f"model.layers.{block}.mlp.{ours}_proj.weight")
            assert torch.equal(tensor, torch.from_numpy(tensors[f"blk.{block}.{name}.weight"]).bfloat16())


def test_a_converted_model_loads_in_plain_transformers(tmp_path, cache):
    make_gguf(tmp_path / "tiny.gguf")
    folder = prepare_source(ModelSection(source=str(tmp_path / "tiny.gguf")))
    tokenizer = load_tokenizer(folder)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    ids = encode_conversation(tokenizer, messages).ids
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_another_gguf_file_of_the_same_name_size_and_time_is_converted(tmp_path, cache):
    (tmp_path / "other").mkdir()
    files = [tmp_path / "tiny.gguf", tmp_path / "other" / "tiny.gguf"]
    make_gguf(files[0])
    files[1].write_bytes(files[0].read_bytes()[:-32] + b"\1" * 32)  # other weights
    for file in files:
        os.utime(file, (1e9, 1e9))
    first, second = (weights_hash(prepare_source(ModelSection(source=str(file)))) for file in files)
    assert first != second


def test_a_damaged_gguf_file_is_a_user_error(tmp_path, cache):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(UserError, match="tiny.gguf"):
        prepare_source(ModelSection(source=str(tmp_path / "tiny.gguf")))


def test_two_processes_convert_a_gguf_file_once(tmp_path, cache, capfd):
    make_gguf(tmp_path / "tiny.gguf")
    section = ModelSection(source=str(tmp_path / "tiny.gguf"))
    fork = multiprocessing.get_context("fork")  # inherits the imported modules
    processes = [fork.Process(target=prepare_source, args=(section,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().err.count("dequantising once") == 1
    AutoModelForCausalLM.from_pretrained(prepare_source(section))
    assert not list(cache.glob("*.partial"))


def test_a_cache_folder_that_cannot_be_created_is_named(tmp_path, monkeypatch):
    make_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set DCR_DS_CACHE to another folder"):
        prepare_source(ModelSection(source=str(tmp_path / "tiny.gguf")))


def test_the_commit_of_a_downloaded_model_is_recorded(tmp_path):
    from dcr_ds.models.locate import describe_source

    cached = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    section = ModelSection(source="owner/name")
    assert describe_source(section, cached) == {"source": "owner/name", "commit": "0123abc"}
    assert describe_source(section, tmp_path)["commit"] is None


def test_an_unknown_home_folder_gives_no_stack_trace():
    for source in ("~no-such-user/model", "~no-such-user/model.gguf"):
        with pytest.raises(UserError, match="no-such-user"):
            prepare_source(ModelSection(source=source))


def test_a_model_named_by_a_variable(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="MODELS is not set"):
        prepare_source(ModelSection(source="${MODELS}/m"))
    monkeypatch.setenv("MODELS", str(tmp_path))
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/m: has no config.json"):
        prepare_source(ModelSection(source="${MODELS}/m"))
