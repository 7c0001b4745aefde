"""`dcr-ds evaluate`: run folders of existing models, with and without interruptions; bad models and names."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from processes import ROOT
from tiny import make_model, make_tokenizer, one_thread_environment
from tiny_models import ONE_RANK

from dcr_ds.commands.evaluate import run
from dcr_ds.commands.parser import options_in_messages
from dcr_ds.commands.train import run as train
from dcr_ds.data import ConversationSet, RunData
from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.errors import UserError
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.run import evaluate_model, longest_answer
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.models.checkpoint_files import model_hash
from dcr_ds.models.load import load_causal_lm
from dcr_ds.recipe import EvaluateSection, load_recipe
from dcr_ds.recipe.layout import ModelFolder

pytestmark = pytest.mark.usefixtures("own_environment")
SETTINGS = ["--suite", "builtin", "--limit", "10", "--max-new-tokens", "12", "--batch-size", "2"]
FILES = {
    "scores.json",
    "generations.jsonl",
    "verdicts.xstest_strings.jsonl",
    "verdicts.advbench_strings.jsonl",
}
JUDGES = ["--judge", "xstest_strings", "--judge", "advbench_strings"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("evaluate") / "model")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """An adapter in peft's format that changes the answers. Its configuration names the folder of the base model."""
    torch.manual_seed(1)
    base = load_causal_lm(model, torch.float32, "sdpa", ONE_RANK.device)
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapter")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """Folders of evaluations: one uninterrupted, the others killed ten times in total; and the answers at each kill."""
    out = tmp_path_factory.mktemp("killed")
    script = [sys.executable, Path(__file__).with_name("killed_evaluations.py"), "10", "0", out]
    done = subprocess.run(
        [*script, f"tiny={model}", *SETTINGS, *JUDGES],
        cwd=ROOT,
        env=one_thread_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("killed after")]


def contents(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on kills, by name; the cost is not among them, as killed work is paid for."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("cost.json", "environment.json", "recipe.yaml")
    }


def test_an_evaluation_killed_ten_times_writes_the_same_rows(killed):
    out, answers_at_kills = killed
    expected = contents(out / "undisturbed")
    assert sum(name.endswith("generations.jsonl") for name in expected) == 4
    folders = [folder for folder in out.iterdir() if folder.name != "undisturbed"]
    assert len(answers_at_kills) == 10 and any(0 < count < 40 for count in answers_at_kills)
    for folder in folders:
        assert contents(folder) == expected


def test_an_evaluation_records_the_command_that_repeats_it(model, tmp_path):
    arguments = [f"tiny={model}", "--benchmarks", "builtin-toxic", "--limit", "2", "--max-new-tokens", "2"]
    arguments += ["--out", str(tmp_path / "runs of mine")]
    run(arguments)
    folder = tmp_path / "runs of mine" / "tiny"
    environment = read_json(folder / "environment.json")
    assert environment["benchmarks"] == ["builtin-toxic"]
    assert environment["command"] == shlex.join(["dcr-ds", "evaluate", *arguments])
    with pytest.raises(UserError, match="this run has only base; name one of them"):
        train([str(folder / "recipe.yaml"), "--output", str(tmp_path / "again")])


def test_files_of_the_run_folder(killed, model):
    folder = killed[0] / "undisturbed" / "tiny"
    recipe = load_recipe(str(folder / "recipe.yaml"))
    assert (recipe.name, recipe.stages, recipe.model.source) == ("tiny", ["evaluate"], str(model))
    assert recipe.model.dtype != "auto" and recipe.evaluate.max_new_tokens == 12
    environment = read_json(folder / "environment.json")
    assert environment["packages"]["torch"] and len(environment["data"]) == 5
    assert "builtin-toxic: 10 of 45 prompts drawn" in environment["notes"]
    home = folder / "evaluate" / "aligned"
    benchmarks = {path.name for path in home.iterdir() if path.is_dir()}
    assert benchmarks == set(environment["benchmarks"])
    assert benchmarks == {"builtin-seemingly-toxic", "builtin-toxic-twins", "builtin-toxic", "builtin-general"}
    for benchmark in benchmarks:
        is_compared = benchmark in ("builtin-seemingly-toxic", "builtin-toxic-twins")
        log_odds = {"log_odds.jsonl"} if is_compared else set()
        assert {path.name for path in (home / benchmark).iterdir()} == FILES | log_odds
        rows = read_jsonl(home / benchmark / "generations.jsonl")
        assert len({row["id"] for row in rows}) == 10
        assert {len(row["template_hash"]) for row in rows} == {16} and len({row["settings_hash"] for row in rows}) == 1
        assert read_json(home / benchmark / "scores.json")["n"] == 10
    assert read_json(home / "general_loss.json")["n"] == 47


def test_attacks_are_evaluated_resumed_and_printed(model, tmp_path, capsys):
    command = [f"it={model}", "--benchmarks", "builtin-toxic", "--attacks", "prefill,suppression"]
    command += ["--limit", "3", "--max-new-tokens", "4", "--judge", "rules", "--out", str(tmp_path)]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "builtin-toxic, prefill: success ↓" in printed and "builtin-toxic, worst case: success ↓" in printed
    home = tmp_path / "it/evaluate/aligned"
    plain, prefilled = (
        read_jsonl(home / name / "generations.jsonl") for name in ("builtin-toxic", "builtin-toxic+prefill")
    )
    assert [(row["id"], row["prompt"]) for row in plain] == [(row["id"], row["prompt"]) for row in prefilled]
    assert all(row["completion"].startswith("Sure, here is the answer:") or not row["completion"] for row in prefilled)
    assert (home / "builtin-toxic/log_odds.jsonl").is_file() and not list(home.glob("*+*/log_odds.jsonl"))
    assert read_json(home / "builtin-toxic+suppression/scores.json")["metric"] == "attack_success_rate"
    assert run(command) == 0
    assert "evaluate it: already done" in "".join(capsys.readouterr())
    # in the same folder: another model, on a part of the benchmarks
    other = make_model(tmp_path / "other", seed=5)
    short = ["--limit", "1", "--max-new-tokens", "2", "--judge", "rules", "--out", str(tmp_path)]
    before = (home / "builtin-toxic/generations.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds results on builtin-toxic.* of another model"):
        run([f"it={other}", "--benchmarks", "builtin-toxic+prefill", *short])
    assert (home / "builtin-toxic/generations.jsonl").read_bytes() == before


def evaluated(home, source, adapter=None):
    return EvaluatedModel("it", ModelFolder(home), source, torch.float32, "sdpa", adapter=adapter)


def test_an_adapter_is_merged_into_its_base(tmp_path, model, adapter):
    benchmarks = read_benchmarks(EvaluateSection(benchmarks=[{"name": "builtin-toxic", "rows": 4}]))
    data = RunData(benchmarks=benchmarks, evaluate_general=ConversationSet("general", "test", [], "0" * 64))
    with pytest.raises(UserError, match="none of the 0 conversations"):
        evaluate_model(evaluated(tmp_path / "none", model), data, EvaluateSection(max_new_tokens=4), ONE_RANK)
    merged = evaluated(tmp_path, model, adapter).load(ONE_RANK.device)
    ids = torch.arange(5, 25)[None]
    base = load_causal_lm(model, torch.float32, "sdpa", ONE_RANK.device)
    with torch.no_grad():
        assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-3)
    assert type(merged) is type(base)
    with_adapter, without = evaluated(tmp_path, model, adapter).identity(), evaluated(tmp_path, model).identity()
    assert with_adapter["content"] == f"{without['content']}+{model_hash(adapter)}"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert evaluated(tmp_path, model, adapter).identity() != with_adapter
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_of_another_model(tmp_path, adapter):
    other = make_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(UserError, match="does not fit the model .*other"):
        evaluated(tmp_path, other, adapter).load(ONE_RANK.device)


def test_answer_length_is_the_benchmarks_unless_the_recipe_sets_it():
    [xstest] = [benchmark for benchmark in read_benchmarks(EvaluateSection(benchmarks=["builtin-toxic"]))]
    for own, setting, longest in ((None, "auto", 256), (9, "auto", 9), (9, 40, 40), (None, 40, 40)):
        settings = EvaluateSection(max_new_tokens=setting)
        assert longest_answer(settings, xstest._replace(max_new_tokens=own)) == longest


def message(*arguments) -> str:
    with pytest.raises(UserError) as error:
        run([str(argument) for argument in arguments])
    return str(error.value)


def test_usage_errors(tmp_path, model):
    out = ["--out", tmp_path / "out"]
    assert "--out" in message(model, "--suite", "quick")
    assert "--help" in message(model, "--suite", "fast", *out)
    assert "name --benchmarks or a --suite" in message(model, *out)
    assert "Did you mean xstest-safe?" in message(model, "--benchmarks", "xstest-saf", *out)
    assert "--limit: 'few' is not a whole number above 0" in message(model, "--suite", "quick", "--limit", "few", *out)
    assert "did you mean xstest_strings?" in message(model, "--suite", "builtin", "--judge", "xtest_strings", *out)
    assert "name them: a=" in message(model, tmp_path / "elsewhere" / "model", "--suite", "builtin", *out)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_evaluated(tmp_path, model, adapter):
    options = ["--suite", "builtin", "--out", tmp_path / "out"]
    assert "nowhere is not a model folder" in message(model, f"b={tmp_path / 'nowhere'}", *options)
    assert "http://127.0.0.1:1/v1#MODEL" in message("http://127.0.0.1:1/v1", *options)
    base = make_model(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    assert "--chat-template FILE" in message(base, *options)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/at/all"}')
    assert "pickles are never loaded" in message(moved, *options)
    (moved / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    assert "'/nowhere/at/all'" in message(moved, *options) and "base_model_name_or_path" in message(moved, *options)
    assert not (tmp_path / "out").exists()


def test_an_error_names_options_for_fields_but_keeps_paths():
    raised = "/a/model.source/b and c/model.source: model.source: no such model; set model.chat_template."
    with pytest.raises(UserError) as error, options_in_messages():
        raise UserError(raised)
    assert str(error.value) == raised.replace("model.source: no", "MODEL: no").replace("model.chat_", "--chat-")


def test_default_names_of_models(tmp_path):
    options = ["--suite", "builtin", "--out", tmp_path / "out"]
    for models, name in (
        (["runs/a/align/model", "other/a/align/model/"], "a-align"),
        (["org/some-model", "some-model"], "some-model"),
        (["http://localhost:8000/v1#org/big", "http://localhost:9000/v1#big"], "big"),
        (["x=one", "x=two"], "x"),
    ):
        assert f"two models have the name {name!r}" in message(*models, *options)


def test_a_training_run_is_not_overwritten(tmp_path, model):
    (tmp_path / "model" / "align").mkdir(parents=True)
    assert "holds a training run (align)" in message(model, "--suite", "builtin", "--out", tmp_path)


def test_a_missing_key_is_an_error_before_any_request(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    error = message("https://api.example.com/v1#big", "--suite", "builtin", "--out", tmp_path / "out")
    assert "OPENAI_API_KEY" in error
