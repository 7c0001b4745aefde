"""`dcr-ds baseline surgical`, `prosafeprune` and `llm-va` on a tiny model: the written folder, and bad input."""

import json

import pytest
import torch
from small_runs import the_error, write_rows
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.cli import main
from dcr_ds.evaluate.targets import locate_target
from dcr_ds.models.check import check_model
from dcr_ds.models.hashes import weights_hash
from dcr_ds.recipe import EndpointSection, ModelSection

SMALL = {
    "surgical": ["--train", "24", "--validation", "12", "--max-kl", "9"],
    "prosafeprune": ["--train", "12", "--rank", "4"],
    "llm-va": ["--train", "16", "--validation", "8", "--iterations", "2"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model whose answers to some prompts begin with the letter I, and with “I'm sorry” then."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", layers=3, dtype=torch.bfloat16)
    return folder


@pytest.mark.parametrize("name", ["prosafeprune"])
def test_a_baseline_is_a_model_folder(model, tmp_path, capsys, name):
    before, out = weights_hash(model), tmp_path / "out"
    assert main(["baseline", name, str(model), "--out", str(out), *SMALL[name]]) == 0
    assert f"dcr-ds evaluate {name}={out}" in capsys.readouterr().out
    record = json.loads((out / "baseline.json").read_text())
    assert record["baseline"] == name and record["kind"] == "weights" and record["source"] == str(model)
    assert record["source_sha256"] == before == weights_hash(model) and record["sha256"] == weights_hash(out) != before
    assert set(record["data"]) == {"harmful", "harmless", "seemingly_toxic"} and record["settings"]["seed"] == 0
    assert locate_target(ModelSection(source=str(out)), EndpointSection()).source == out
    assert check_model(out) == []
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, out))
    changed = {name for name, weight in first.named_parameters() if not torch.equal(weight, second.get_parameter(name))}
    assert changed == set(record["changed"])
    assert {weight.dtype for weight in second.parameters()} == {torch.bfloat16}
    assert not (tmp_path / "out.partial").exists()
