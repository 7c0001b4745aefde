"""`dcr-ds baseline surgical`, `prosafeprune` and `llm-va` on a tiny model: the written folder, and bad input."""

import json
import shutil
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
def test_a_baseline_is_a_model_folder(tmp_path, capsys, model_type):
    model = make_model(tmp_path / "model", model_type, 3, dtype=torch.bfloat16)
    before, out = weights_hash(model), tmp_path / "out"
    assert main(["baseline", "prosafeprune", str(model), "--out", str(out), "--train", "12", "--rank", "4"]) == 0
    assert f"dcr-ds evaluate prosafeprune={out}" in capsys.readouterr().out
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
