"""Damaged checkpoints are detected from their headers; hashes identify models and the bases of adapters."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import check_checkpoint, weight_files
from dcr_ds.models.hashes import check_base, weights_hash


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("source") / "model", layers=2)


@pytest.fixture
def broken(model, tmp_path):
    """A copy of the model whose weights a test may damage."""
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_index_names_the_shards(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path, max_shard_size="20KB")
    files = weight_files(tmp_path)
    assert len(files) > 2 and all("-of-" in file.name for file in files)
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name} is missing"):
        check_checkpoint(tmp_path)


def test_a_single_file_next_to_shards_is_refused(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"holds both model.safetensors and model.safetensors.index.json .*; remove"):
        check_checkpoint(tmp_path)


def test_truncated_weights_are_detected(broken):
    file = broken / "model.safetensors"
    content = file.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    for size in (0, 3, 8, 9, header_end - 1, header_end, header_end + 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"model\.safetensors: .*copy it again"):
            check_checkpoint(broken)
    file.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=f"has {len(content) + 1} bytes, its header says {len(content)}"):
        check_checkpoint(broken)
    file.write_bytes(content)
    check_checkpoint(broken)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\0" * 100, b"<html>404</html>", b"\x02" + b"\0" * 7 + b"{}"])
def test_garbage_is_not_a_safetensors_file(broken, content):
    (broken / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        check_checkpoint(broken)


def test_a_folder_of_pickles_has_its_own_message(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which is never loaded"):
        check_checkpoint(broken)
    (broken / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights: neither model.safetensors nor an index of shards$"):
        check_checkpoint(broken)


def test_a_model_type_that_is_no_name_is_an_error(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": ["llama"]}))
    with pytest.raises(UserError, match="config.json: model_type must be a name"):
        check_checkpoint(broken)


def test_a_missing_or_invalid_config_is_named(broken):
    (broken / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        check_checkpoint(broken)
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match="has no config.json"):
        check_checkpoint(broken)


def test_the_weights_hash_covers_every_name_dtype_shape_and_byte(tmp_path):
    tensors = {"a": torch.arange(6, dtype=torch.float32), "b": torch.ones(2, 3)}
    others = [
        tensors | {"b": tensors["b"] * 1.0001},
        tensors | {"b": tensors["b"].view(3, 2)},
        tensors | {"b": tensors["b"].to(torch.bfloat16)},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"]},
    ]
    hashes = set()
    for number, stored in enumerate([tensors, *others]):
        (folder := tmp_path / str(number)).mkdir()
        save_file(stored, folder / "model.safetensors")
        hashes.add(weights_hash(folder))
    assert len(hashes) == 6
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, shards / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in reversed(tensors)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_hash(shards) == weights_hash(tmp_path / "0")


def test_the_base_of_an_adapter(tmp_path):
    (base := tmp_path / "base").mkdir()
    save_file({"a": torch.ones(2)}, base / "model.safetensors")
    (adapter := tmp_path / "adapter").mkdir()
    check_base(base, adapter)  # adapters of other projects do not record their base
    record = adapter / "base.json"
    record.write_text(json.dumps({"source": "there", "sha256": weights_hash(base)}))
    check_base(base, adapter)
    record.write_text(json.dumps({"source": "there", "sha256": "0" * 64}))
    with pytest.raises(
        UserError,
        match=f"{adapter}: was trained on other weights .*{base}.*trained on: there$",
    ):
        check_base(base, adapter)
    record.write_text("{}")
    with pytest.raises(UserError, match=f"{record}: damaged"):
        check_base(base, adapter)
