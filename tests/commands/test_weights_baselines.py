"""`dcr-ds baseline surgical`, `prosafeprune` and `llm-va` on a tiny model: the written folder, and bad input."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_runs import the_error, write_rows
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.baselines.prompts import ROLES
from dcr_ds.cli import main
from dcr_ds.evaluate.targets import locate_target
from dcr_ds.models.hashes import weights_hash
from dcr_ds.recipe import EndpointSection, ModelSection


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=3, dtype=torch.bfloat16)


@pytest.fixture
def refused(tmp_path, capsys):
    """The error message of a baseline that writes nothing."""

    def run(*arguments):
        assert main(["baseline", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        assert not list(tmp_path.glob("out*"))
        return the_error(capsys.readouterr().err)

    return run


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_baseline_is_a_model_folder(tmp_path, capsys, monkeypatch, model_type):
    """A relative one, in which a call that was killed left a part of the files."""
    model = make_model(tmp_path / "model", model_type, 3, dtype=torch.bfloat16)
    before, out = weights_hash(model), tmp_path / "out"
    shutil.copytree(model, tmp_path / "out.partial" / "out")
    os.truncate(tmp_path / "out.partial" / "out" / "model.safetensors", 5000)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "out", "--suite", "builtin", "--out", "runs"]) == 2
    assert "out is not a model folder" in the_error(capsys.readouterr().err)
    command = ["baseline", "prosafeprune", "model", "--out", "out", "--train", "12", "--rank", "4"]
    with files_of_at_most(20_000):
        assert main(command) == 2
    assert "cannot be written (File too large)" in the_error(capsys.readouterr().err)
    assert {file.name for file in tmp_path.iterdir()} == {"model"}, "a part was left"
    assert main(command) == 0
    assert "dcr-ds evaluate prosafeprune=out" in capsys.readouterr().out
    record = json.loads((out / "baseline.json").read_text())
    assert (record["baseline"], record["kind"], record["source"]) == ("prosafeprune", "weights", str(model))
    assert record["source_sha256"] == before == weights_hash(model) and record["sha256"] == weights_hash(out) != before
    assert {role: part[0]["rows"] for role, part in record["data"].items()} == dict.fromkeys(ROLES, 12)
    assert record["settings"] == {
        "rank": 4, "strength": 0.9, "modules": ["attention"], "layers": None, "seed": 0
    }  # fmt: skip
    assert locate_target(ModelSection(source=str(out)), EndpointSection()).source == out
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, out))
    changed = {name for name, weight in first.named_parameters() if not torch.equal(weight, second.get_parameter(name))}
    assert changed == set(record["changed"]) and len(changed) == 4 * len(record["selection"]["layers"])
    assert {weight.dtype for weight in second.parameters()} == {torch.bfloat16}
    assert {file.name for file in tmp_path.iterdir()} == {"model", "out"}


@contextmanager
def files_of_at_most(size):
    """Writing fails in a file that becomes larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_hook_is_written_as_a_whole(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "baseline.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    command = ["baseline", "knob", str(model), "--strength", "1", "--out"]
    with files_of_at_most(1000):
        assert main([*command, "out"]) == 2
    assert "cannot be written (File too large)" in the_error(capsys.readouterr().err)
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "link"}
    for out in ("below/out", "link"):
        assert main([*command, out]) == 0
        assert locate_target(ModelSection(source=out), EndpointSection()).hook
    assert (tmp_path / "empty" / "baseline.json").is_file()


@pytest.mark.parametrize("out", [".", "..", "file", "file/out", "dangling/.."])
def test_outputs_that_cannot_be_made_are_refused_before_work(tmp_path, capsys, monkeypatch, out):
    """The model does not exist, which would be the next error."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").touch()
    monkeypatch.chdir(tmp_path / "in" if out != "." else tmp_path)
    assert main(["baseline", "knob", "./none", "--strength", "1", "--out", out]) == 2
    assert f"--out: {out}" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["prosafeprune", "--layers", "0-99999999999"], "--layers: '0-99999999999': no model has so many layers"),
        (["prosafeprune", "--strength", "1e39"], "--strength: 1e39 is not a finite number, or too large"),
        (["scans", "--threshold", "7"], "--threshold: 7 is out of range"),
        (["knob", "--strength", "-inf"], "--strength: -inf is not a finite number"),
        (["knob", "--strength", "-1e-3"], "MODEL: none is not a model folder"),
    ],
)
def test_values_out_of_range_are_refused_before_work(capsys, command, message):
    assert main(["baseline", command[0], "none", *command[1:], "--out", "out"]) == 2
    assert message in the_error(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["scans", "surgical"])
def test_prompts_beyond_the_context_are_named(model, tmp_path, refused, name):
    options = ["--anchors", 1] if name == "scans" else ["--train", 1, "--validation", 1]
    for role in ("harmful", "harmless", *(["seemingly-toxic"] if name == "surgical" else [])):
        file = tmp_path / f"{role}.jsonl"
        write_rows(file, [{"prompt": f"{role} {number} {'x' * 512}"} for number in range(2)])
        options += [f"--{role}", file]
    error = refused(name, model, *options)
    assert "harmful-" in error and "tokens, but the model reads at most 512" in error


def test_columns_of_a_file_are_renamed_where_no_recipe_maps_them(model, tmp_path, refused):
    write_rows(tmp_path / "texts.jsonl", [{"text": "a"}])
    error = refused("scans", model, "--harmful", tmp_path / "texts.jsonl")
    assert "no column 'prompt'; columns: text. Map the right one with `columns.prompt`, which only recipes set" in error


def test_an_existing_folder_is_kept(model, tmp_path, capsys):
    file = tmp_path / "out" / "mine"
    file.parent.mkdir()
    file.write_text("mine")
    assert main(["baseline", "surgical", str(model), "--out", str(tmp_path / "out")]) == 2
    assert "name a new folder" in the_error(capsys.readouterr().err) and file.read_text() == "mine"


@pytest.mark.parametrize("name", ["surgical", "llm-va"])
def test_a_model_that_refuses_nothing_is_named(model, refused, name):
    counts = {"surgical": "refuses 0 of 16 training prompts of the set harmful", "llm-va": "refuses 0 training prompts"}
    assert counts[name] in refused(name, model, "--train", 16, "--validation", 8)


def test_adapters_are_merged_first(model, tmp_path, refused):
    config = {"peft_type": "LORA", "base_model_name_or_path": str(model)}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    assert f"merge it first: dcr-ds export {adapter} --merge" in refused("surgical", adapter)


def test_quantised_models_are_refused(model, tmp_path, refused):
    copy = Path(shutil.copytree(model, tmp_path / "quantised"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quantised already (config.json says gptq)" in refused("llm-va", copy)


@pytest.mark.parametrize(
    ("model_type", "name", "message"),
    [
        ("qwen3_moe", "surgical", "mlp.down_proj was looked for in each block, and model.layers.0 has none"),
        ("phi3", "prosafeprune", "its linear modules are self_attn.o_proj, self_attn.qkv_proj"),
        ("gemma2", "llm-va", "normalise the outputs of self_attn.o_proj and mlp.down_proj again"),
    ],
)
def test_other_architectures_name_what_was_looked_for(tmp_path, refused, model_type, name, message):
    assert message in refused(name, make_model(tmp_path / "model", model_type, 2, tied=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["surgical", "https://host/v1#m"], "an endpoint shows neither"),
        (["surgical", "MODEL", "--train", "400"], "432 are needed (400 + 32)"),
        (["prosafeprune", "MODEL", "--harmful", "FILE"], "128 are needed (128)"),
        (["prosafeprune", "MODEL", "--harmless", "FILE", "--harmful", "SAME"], "3 prompts in common"),
        (["llm-va", "MODEL", "--harmful", "FILE", "--seemingly-toxic", "SAME"], "few-1 and same-1: 'WRECK 0!'"),
        (["scans", "MODEL", "--harmful", "FILE", "--harmless", "SAME"], "same.jsonl) have 3"),
        (["prosafeprune", "MODEL", "--layers", "5-3"], "'5-3' is not a layer or a range of layers"),
        (["prosafeprune", "MODEL", "--modules", "heads"], "'heads' is not one of attention, mlp"),
        (["prosafeprune", "MODEL", "--layers", "7", "--train", "20"], "no layer 7; the model has 3 blocks"),
        (["llm-va", "MODEL", "--modules", "9", "--train", "8"], "--modules: 9 asked for, the model has 6"),
        (["surgical", "MODEL", "--max-kl", "0"], "0 is out of range"),
    ],
)
def test_bad_input_is_named(model, tmp_path, refused, arguments, message):
    file = write_rows(tmp_path / "few.jsonl", [{"prompt": f"wreck {i}"} for i in range(3)])
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": f"WRECK {i}!"} for i in range(3)])
    assert message in refused(*({"MODEL": model, "FILE": file, "SAME": same}.get(word, word) for word in arguments))
