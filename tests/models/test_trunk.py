"""The trunk equals the model up to block ℓ exactly, and is written back without changing the tail."""

import hashlib
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.architectures import TESTED
from dcr_ds.models.checkpoint_files import INDEX, weight_files
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.load import NO_GPU, load_causal_lm, resolve_attention
from dcr_ds.models.shards import ShardWriter, plan_shards
from dcr_ds.models.splice import HeldWeights, splice
from dcr_ds.models.trunk import load_trunk

LAYER = 2


def attention_of(model_type):
    """What `auto` means for this architecture on a CPU."""
    return resolve_attention("auto", model_type, "float32", NO_GPU)[0]


def tensors_of(folder):
    tensors = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name in stream.keys()}
    return tensors


def inputs():
    ids = torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("model_type", TESTED)
def test_h_equals_the_hidden_state_of_the_full_model_bit_for_bit(tmp_path, model_type):
    source = make_model(tmp_path / "m", model_type)
    attention = attention_of(model_type)
    full = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=attention).eval()
    trunk = load_trunk(source, LAYER, torch.float32, attention_of(model_type)).eval()
    with torch.no_grad():
        expected = full(**inputs(), output_hidden_states=True).hidden_states[LAYER]
        h = trunk(**inputs()).last_hidden_state
    real = inputs()["attention_mask"].bool()
    assert torch.equal(h[real], expected[real])


def test_a_forward_pass_in_training_mode_is_repeatable(tmp_path):
    """Mixtral's routers can read noisy states, and Granite has dropout: each pass of a step must be the same."""
    noise = {"router_jitter_noise": 0.5, "attention_dropout": 0.5}
    source = make_model(tmp_path / "m", "mixtral", layers=3, **noise)
    trunk = load_trunk(source, LAYER, torch.float32, attention_of("mixtral")).train()
    whole = load_causal_lm(source, torch.float32, attention_of("mixtral"), None).train()
    with torch.no_grad():
        for passes in ([trunk(**inputs())[0] for _ in range(2)], [whole(**inputs()).logits for _ in range(2)]):
            assert torch.equal(*passes)


@pytest.mark.parametrize("model_type", TESTED)
def test_splice_changes_only_the_trunk(tmp_path, model_type):
    tied = model_type not in ("phi3", "mixtral")
    source = make_model(tmp_path / "m", model_type, tied=tied, dtype=torch.bfloat16)
    trunk = load_trunk(source, LAYER, torch.float32, attention_of(model_type)).eval()
    assert trunk.get_input_embeddings().weight.requires_grad is not tied
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    trained = {name: parameter.detach() for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    splice(trunk, trained, source, tmp_path / "out", prefix="model.")

    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    buffers = {f"model.{name}" for name, _ in trunk.named_buffers()}  # stored by some architectures, never trained
    for name in before:
        block = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        in_trunk = (block is not None and block < LAYER) or (name == "model.embed_tokens.weight" and not tied)
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]) is not (in_trunk and name not in buffers), name

    spliced = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation=attention_of(model_type)
    ).eval()
    assert spliced.config.num_hidden_layers == 4
    real = inputs()["attention_mask"].bool()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # rounded to the dtype of the source
            stored = before.get(f"model.{name}")
            parameter.copy_(parameter.to(torch.bfloat16 if stored is None else stored.dtype))
        hidden = spliced(**inputs(), output_hidden_states=True).hidden_states[LAYER]
        assert torch.equal(hidden[real], trunk(**inputs()).last_hidden_state[real])


@pytest.fixture
def sharded(tmp_path):
    """A model in several files."""
    source = make_model(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    for file in source.glob("tokenizer*"):
        (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "sharded"


def test_splice_keeps_the_files_of_the_source_and_reports_progress_per_file(sharded, tmp_path, monkeypatch, capsys):
    trunk = load_trunk(sharded, LAYER, torch.float32, "sdpa")
    trained = {name: p.detach() + 1 for name, p in trunk.named_parameters() if p.requires_grad}
    places: list[str] = []
    monkeypatch.setattr("dcr_ds.models.shards.heartbeat", places.append)
    capsys.readouterr()
    splice(trunk, trained, sharded, tmp_path / "out", prefix="model.")
    names = [file.name for file in weight_files(sharded)]
    assert len(names) > 2 and names == [file.name for file in weight_files(tmp_path / "out")]
    assert {place.rpartition("/")[2] for place in places if place.startswith("writing")} == set(names)
    reported = capsys.readouterr().err
    assert all(f"/{name}: " in reported for name in names)
    assert f"({len(names)} of {len(names)})" in reported
    assert (tmp_path / "out" / INDEX).read_bytes() == (sharded / INDEX).read_bytes()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded.model.layers[0].mlp.up_proj.weight, trained["layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "mixtral"])
def test_files_that_are_too_large_are_split(tmp_path, model_type, monkeypatch):
    source = make_model(tmp_path / "m", model_type, dtype=torch.bfloat16)
    trunk = load_trunk(source, LAYER, torch.float32, attention_of(model_type))
    trained = {name: p.detach() + 1 for name, p in trunk.named_parameters() if p.requires_grad}
    splice(trunk, trained, source, tmp_path / "one", prefix="model.")
    monkeypatch.setattr("dcr_ds.models.shards.MAX_SHARD_BYTES", 30_000)
    splice(trunk, trained, source, tmp_path / "many", prefix="model.")
    assert [file.name for file in weight_files(tmp_path / "one")] == ["model.safetensors"]
    assert len(weight_files(tmp_path / "many")) > 2
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(tensor, many[name]) for name, tensor in one.items())


def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path):
    tensors = {"é.b": torch.ones(2, 2), "é.a": torch.ones(()), "none": torch.ones(0, 3)}
    dtypes = [
        torch.float64,
        torch.int64,
        torch.bfloat16,
        torch.float16,
        torch.int32,
        torch.uint8,
        torch.bool,
        torch.int8,
    ]
    tensors |= {str(dtype): torch.ones(3).to(dtype) for dtype in dtypes}
    for number, metadata in enumerate([{"format": "pt"}, None]):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        (shard,) = plan_shards(folder, set(tensors))
        (folder / "copy").mkdir()
        writer = ShardWriter(folder / "copy", [shard], is_reported=False)
        for name in reversed(list(tensors)):
            writer.copy(name)
        writer.finish()
        copy = folder / "copy" / "model.safetensors"
        assert copy.read_bytes() == (folder / "model.safetensors").read_bytes()
        assert weights_hash(folder) == weights_hash(folder / "copy")
        assert writer.digests["é.b"] == hashlib.sha256(tensors["é.b"].numpy().tobytes()).hexdigest()


def test_the_hash_of_a_written_model_is_known_without_reading_it(sharded, tmp_path, monkeypatch):
    splice(load_trunk(sharded, LAYER, torch.float32, "sdpa"), {}, sharded, tmp_path / "out", prefix="model.")
    expected = weights_hash(sharded)
    monkeypatch.setattr("dcr_ds.models.hashes._update", None)
    assert weights_hash(tmp_path / "out") == expected
    monkeypatch.undo()
    file = weight_files(tmp_path / "out")[0]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert weights_hash(tmp_path / "out") != expected


def test_queued_tensors_are_bounded(tmp_path, monkeypatch):
    """Weights are read only as fast as they are written."""
    source = make_model(tmp_path / "m", layers=8)
    model = AutoModelForCausalLM.from_pretrained(source)
    weights = HeldWeights(dict(model.named_parameters()))
    monkeypatch.setattr("dcr_ds.models.shards.QUEUED_BYTES", 20_000)
    unwritten, most = {}, 0
    read, note = weights.read, ShardWriter._note

    def count(name, wanted):
        nonlocal most
        most = max(most, sum(unwritten.values()))
        unwritten[name] = read(name, wanted).nbytes
        return read(name, wanted)

    def forget(writer, shard, name, digest):
        time.sleep(0.002)
        unwritten.pop(name)
        note(writer, shard, name, digest)

    monkeypatch.setattr(weights, "read", count)
    monkeypatch.setattr(ShardWriter, "_note", forget)
    splice(model, weights, source, tmp_path / "out")
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert 0 < most <= 20_000 + largest < sum(parameter.nbytes for parameter in model.parameters()) / 4


@pytest.mark.parametrize("layer", [0, 4, 9])
def test_layer_out_of_range_is_named(tmp_path, layer):
    source = make_model(tmp_path / "m")
    with pytest.raises(UserError, match=rf"refine.layer: {layer} is out of range.*1 to 3"):
        load_trunk(source, layer, torch.float32, "sdpa")


def test_the_tail_is_not_loaded(tmp_path):
    source = make_model(tmp_path / "m", tied=False)
    names = [name for name, _ in load_trunk(source, LAYER, torch.float32, "sdpa").named_parameters()]
    assert not [
        name for name in names if "layers.2" in name or "layers.3" in name or name == "norm.weight" or "head" in name
    ]
