"""One folder of whole safetensors, wherever a model comes from; a broken one is found from its headers."""

import json
import multiprocessing

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_conversation, load_tokenizer
from dcr_ds.models.source import (
    cache_folder,
    check_base,
    check_checkpoint,
    fingerprint,
    model_config,
    prepare_source,
    weight_files,
)
from dcr_ds.recipe import ModelSection


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("source") / "model", layers=2)


@pytest.fixture
def broken(model, tmp_path):
    """A copy of the model whose weights a test may spoil."""
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_local_folder_is_taken_as_it_is(model):
    assert prepare_source(ModelSection(source=str(model))) == model
    assert model_config(model)["model_type"] == "llama"
    assert weight_files(model) == [model / "model.safetensors"]


def test_shards_are_those_that_the_index_names(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").write_bytes(b"left from an earlier save")
    files = weight_files(prepare_source(ModelSection(source=str(tmp_path))))
    assert len(files) > 2 and all("-of-" in file.name for file in files)
    files[1].unlink()
    with pytest.raises(UserError, match=f"names {files[1].name}, which is not there"):
        check_checkpoint(tmp_path)


def test_weights_cut_off_anywhere_are_found(broken):
    file = broken / "model.safetensors"
    whole = file.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 3, 8, 9, header_end - 1, header_end, header_end + 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.safetensors: .*copy it again"):
            check_checkpoint(broken)
    file.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match=f"{len(whole) + 1} bytes where its header wants {len(whole)}"):
        check_checkpoint(broken)
    file.write_bytes(whole)
    check_checkpoint(broken)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\0" * 100, b"<html>404</html>", b"\x02" + b"\0" * 7 + b"{}"])
def test_garbage_is_no_safetensors_file(broken, content):
    (broken / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        check_checkpoint(broken)


def test_a_folder_of_pickles_is_told_apart_from_an_empty_one(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which is never loaded"):
        check_checkpoint(broken)
    (broken / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="a model folder without weights$"):
        check_checkpoint(broken)


def test_an_unsupported_architecture_is_named(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UserError, match="unsupported architecture 'mamba'; supported: llama, "):
        check_checkpoint(broken)


def test_a_config_that_is_missing_or_no_json_is_named(broken):
    (broken / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        check_checkpoint(broken)
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        check_checkpoint(broken)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/model", "smollm2", "a/b/c", "nowhere.gguf"])
def test_a_source_that_is_nothing_is_an_error_without_a_download(source):
    with pytest.raises(UserError, match="model.source: "):
        prepare_source(ModelSection(source=source))


def make_gguf(file):
    """A tiny llama as llama.cpp writes it, its MLP quantised to 8 bits; gives the MLP's tensors as dequantised."""
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
    kept = {}
    for name, shape in {"token_embd.weight": (len(words), 32), "output_norm.weight": (32,), **shapes}.items():
        values = generator.normal(size=shape).astype(np.float32)
        if ".ffn_" in name and "norm" not in name:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            kept[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_model_is_dequantised_once(tmp_path, cache, capfd):
    kept = make_gguf(tmp_path / "tiny.gguf")
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
            assert torch.equal(tensor, torch.from_numpy(kept[f"blk.{block}.{name}.weight"]).bfloat16())


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


def test_a_changed_gguf_file_is_converted_again(tmp_path, cache):
    make_gguf(tmp_path / "tiny.gguf")
    section = ModelSection(source=str(tmp_path / "tiny.gguf"))
    first = prepare_source(section)
    with (tmp_path / "tiny.gguf").open("ab") as stream:
        stream.write(b"\0" * 32)
    assert prepare_source(section) != first


def test_a_gguf_file_that_is_none_is_a_users_error(tmp_path, cache):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(UserError, match="tiny.gguf"):
        prepare_source(ModelSection(source=str(tmp_path / "tiny.gguf")))


def test_two_processes_convert_one_gguf_file_once(tmp_path, cache, capfd):
    make_gguf(tmp_path / "tiny.gguf")
    section = ModelSection(source=str(tmp_path / "tiny.gguf"))
    fork = multiprocessing.get_context("fork")  # what is imported is there at once
    processes = [fork.Process(target=prepare_source, args=(section,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().err.count("dequantising once") == 1
    AutoModelForCausalLM.from_pretrained(prepare_source(section))
    assert not list(cache.glob("*.partial"))


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    make_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set DCR_DS_CACHE elsewhere"):
        prepare_source(ModelSection(source=str(tmp_path / "tiny.gguf")))


def test_a_fingerprint_is_of_every_name_dtype_shape_and_byte(tmp_path):
    tensors = {"a": torch.arange(6, dtype=torch.float32), "b": torch.ones(2, 3)}
    others = [
        tensors | {"b": tensors["b"] * 1.0001},
        tensors | {"b": tensors["b"].view(3, 2)},
        tensors | {"b": tensors["b"].to(torch.bfloat16)},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"]},
    ]
    seen = set()
    for number, each in enumerate([tensors, *others]):
        (folder := tmp_path / str(number)).mkdir()
        save_file(each, folder / "model.safetensors")
        seen.add(fingerprint(folder))
    assert len(seen) == 6
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, shards / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in reversed(tensors)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(shards) == fingerprint(tmp_path / "0")


def test_the_base_of_an_adapter(tmp_path):
    (base := tmp_path / "base").mkdir()
    save_file({"a": torch.ones(2)}, base / "model.safetensors")
    (adapter := tmp_path / "adapter").mkdir()
    check_base(base, adapter)  # somebody else's adapter says nothing of its base
    record = adapter / "base.json"
    record.write_text(json.dumps({"source": "there", "sha256": fingerprint(base)}))
    check_base(base, adapter)
    record.write_text(json.dumps({"source": "there", "sha256": "0" * 64}))
    with pytest.raises(UserError, match=f"{adapter}: was trained on other weights .*{base}.*which was there"):
        check_base(base, adapter)
    record.write_text("{}")
    with pytest.raises(UserError, match=f"{record}: damaged"):
        check_base(base, adapter)
