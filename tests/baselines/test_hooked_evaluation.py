"""`dcr-ds baseline` and `dcr-ds evaluate` of what it writes, on a tiny model; what cannot be used is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hooked_models import write_hook
from peft import LoraConfig, get_peft_model
from small_runs import the_error, write_rows
from tiny import make_model, make_reasoning_model
from transformers import AutoModelForCausalLM

from dcr_ds.cli import main
from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.discernment import raised_log_odds
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.targets import locate_target
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.models.hooks.knob import knob_of
from dcr_ds.models.hooks.load import load_model
from dcr_ds.recipe import OWN_TEMPLATE, EndpointSection, EvaluateSection, ModelSection
from dcr_ds.recipe.layout import ModelFolder

LIMIT = 4  # prompts
SETTINGS = ["--benchmarks", "builtin", "--limit", str(LIMIT), "--max-new-tokens", "3"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("baseline") / "model", layers=4)


@pytest.fixture(scope="module")
def knob(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("knob") / "knob"
    assert main(["baseline", "knob", str(source), "--strength", "1.5", "--out", str(out)]) == 0
    return out


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; returns its message."""

    def run(*arguments) -> str:
        assert main(list(map(str, arguments))) == 2
        return the_error(capsys.readouterr().err)

    return run


@pytest.fixture(scope="module")
def scans(source, tmp_path_factory):
    """Made from prompts of a benchmark, among others."""
    folder = tmp_path_factory.mktemp("scans")
    rows = [{"prompt": prompt} for prompt in (*asked("builtin-toxic-twins"), *map("wreck {}".format, range(4)))]
    harmful = write_rows(folder / "harmful.jsonl", rows)
    words = ["--anchors", "4", "--harmful", str(harmful), "--out", str(folder / "scans")]
    assert main(["baseline", "scans", str(source), *words]) == 0
    return folder / "scans"


def asked(name):
    section = EvaluateSection(benchmarks=[{"name": name, "rows": LIMIT}])
    return [row.prompt for row in read_benchmarks(section)[0].prompts.rows]


def test_models_with_hooks_are_evaluated_beside_their_source(source, knob, scans, tmp_path, refused, capsys):
    record = read_json(scans / "baseline.json")
    assert record["settings"]["steered"] == [2] and record["data"]["harmful (threshold)"]["rows"] == 4
    assert "on 4 + 4 held-out anchors" in record["settings"]["threshold_from"]
    assert Counter(row["set"] for row in read_jsonl(scans / "prompts.jsonl")) == dict.fromkeys(record["data"], 4)
    out = tmp_path / "runs"
    evaluate = ["evaluate", f"base={source}", f"knob={knob}", f"scans={scans}", *SETTINGS, "--out", str(out)]
    message = refused(*evaluate)
    assert f"{scans} (harmful) and builtin-toxic-twins: " in message and "--allow-leakage" in message
    assert not out.exists()
    assert main([*evaluate, "--allow-leakage"]) == 0
    assert "knob" in capsys.readouterr().out
    models = ("base", "knob", "scans")
    overlaps = {name: read_json(out / name / "environment.json")["overlaps"] for name in models}
    assert overlaps == {"base": [], "knob": [], "scans": overlaps["scans"]} and len(overlaps["scans"]) == LIMIT
    home = "evaluate/aligned"
    for name in ("builtin-seemingly-toxic", "builtin-toxic-twins"):
        base, raised = (read_jsonl(out / model / home / name / "log_odds.jsonl") for model in models[:2])
        before = [np.array([row[figure] for row in base]) for figure in ("log_odds", "first_token")]
        assert [row["log_odds"] for row in raised] == pytest.approx(raised_log_odds(*before, 1.5), abs=1e-4)
    hashes = {read_json(out / model / home / "general_loss.json")["settings_hash"] for model in models}
    assert len(hashes) == 3


def test_what_an_evaluation_cannot_do_with_a_hook(knob, tmp_path, refused):
    out = ["--out", tmp_path]
    server = ["--server-command", "python {model} {host} {port}"]
    assert "a server cannot install the hook" in refused("evaluate", knob, *SETTINGS, *server, *out)
    attacked = ["--benchmarks", "builtin-toxic", "--attacks", "prefill"]
    assert "gives the beginning of the answer" in refused("evaluate", knob, *attacked, *out)
    assert "spread over 2 ranks" in refused("evaluate", knob, *SETTINGS, "--ranks-per-copy", "2", *out)
    other = ["--chat-template", "instruction"]
    assert "another chat template" in refused("evaluate", knob, *SETTINGS, *other, *out)
    assert "a hook on another model" in refused("ability", knob, "--out", tmp_path / "ability")
    assert "name its source model" in refused("diagnose", "layers", knob)


def test_baseline_folders_that_no_longer_fit(source, tmp_path, refused):
    settings = {"strength": 1.5, "tokens": [7], "texts": ["a"]}
    evaluate = [*SETTINGS, "--out", tmp_path / "out"]
    moved = write_hook(tmp_path / "moved", make_model(tmp_path / "gone"), "knob", settings)
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    assert "source model" in refused("evaluate", moved, *evaluate)
    make_model(tmp_path / "gone", seed=1)
    assert "its content has changed" in refused("evaluate", moved, *evaluate)
    nan = write_hook(tmp_path / "nan", source, "knob", settings | {"strength": float("nan")})
    assert "not a finite number" in refused("evaluate", nan, *evaluate)
    lacking = write_hook(tmp_path / "lacking", source, "knob", {"strength": 1.0})
    assert "a damaged baseline" in refused("evaluate", lacking, *evaluate)
    unknown = write_hook(tmp_path / "unknown", source, "lever", settings)
    assert "unknown baseline 'lever'" in refused("evaluate", unknown, *evaluate)
    (unknown / "baseline.json").write_text("{")
    assert "not valid JSON" in refused("evaluate", unknown, *evaluate)


def test_models_that_no_baseline_is_made_from(source, knob, tmp_path, refused):
    make = ["--strength", "1", "--out", tmp_path / "out"]
    assert "did you mean knob?" in refused("baseline", "knbo", source)
    assert "an endpoint shows neither" in refused("baseline", "knob", "https://api.example.com/v1#m", *make)
    assert "is a baseline itself" in refused("baseline", "knob", knob, *make)
    assert "could not be downloaded" in refused("baseline", "knob", "owner/not-there", *make)
    quantised = make_model(tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quantised" in refused("baseline", "knob", quantised, *make)
    assert "exists already" in refused("baseline", "knob", source, "--strength", "1", "--out", source)
    assert "inside the model's folder" in refused("baseline", "knob", source, "--strength", "1", "--out", source / "in")
    for value in ("nan", "inf", "much", "-101"):
        assert value in refused("baseline", "knob", source, "--strength", value, "--out", tmp_path / "out")
    thinking = make_reasoning_model(tmp_path / "thinking")  # the prompt opens a block of reasoning
    assert "writes '<think>' before each answer" in refused("baseline", "knob", thinking, *make)
    closed = ["--chat-template-kwargs", '{"enable_thinking": false}', "--out", str(tmp_path / "closed")]
    assert main(["baseline", "knob", str(thinking), "--strength", "1", *closed]) == 0
    small = make_model(tmp_path / "small", layers=2)
    assert "2 blocks" in refused("baseline", "scans", small, "--out", tmp_path / "out")
    assert "200 + 200" in refused("baseline", "scans", source, "--anchors", "200", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hook_on_an_adapter(source, tmp_path):
    """The adapter is merged, then the hook is installed; the identity has all three."""
    base = AutoModelForCausalLM.from_pretrained(source)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    assert (
        main(["baseline", "knob", str(tmp_path / "adapter"), "--strength", "1", "--out", str(tmp_path / "knob")]) == 0
    )
    files = locate_target(ModelSection(source=str(tmp_path / "knob")), EndpointSection())
    assert files == (source, tmp_path / "adapter", tmp_path / "knob")
    assert knob_of(load_model(*files, torch.float32, "sdpa", torch.device("cpu"))).strength == 1
    model = EvaluatedModel("it", ModelFolder(tmp_path), files.source, torch.float32, "sdpa", OWN_TEMPLATE, *files[1:])
    assert model.identity()["content"].count("+") == 2
