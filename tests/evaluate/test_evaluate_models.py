import json
from dataclasses import replace

import pytest
from tiny_models import CONVERSATIONS, ONE_RANK, PROMPTS, save_tiny_model

from dcr_ds.data import Benchmark, Conversation, ConversationSet, PromptSet, RunData
from dcr_ds.errors import UserError
from dcr_ds.evaluate import log_odds, run
from dcr_ds.evaluate import model as evaluated
from dcr_ds.files import read_json, read_jsonl, write_json, write_jsonl
from dcr_ds.models.checkpoint_files import model_hash
from dcr_ds.recipe import Recipe

TOO_LONG = Conversation("long", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 300}))
SOURCES = {"benchmarks": [{"name": "seeming", "prompts": "a.csv", "wanted": "comply"}]}


def recipe(**evaluate):
    settings = {"max_new_tokens": 6, "batch_size": 4, "judges": ["xstest_strings"]}
    fixed = {"dtype": "float32", "attention": "sdpa"}
    return Recipe.model_validate({"model": fixed, "evaluate": SOURCES | settings | evaluate})


@pytest.fixture
def data():
    def prompts(name, rows):
        return PromptSet(name, "test", rows, "0" * 64)

    return RunData(
        benchmarks=[
            Benchmark("seeming", "comply", prompts("seeming", PROMPTS[:6])),
            Benchmark("toxic", "refuse", prompts("toxic", PROMPTS[6:]), max_new_tokens=9),
        ],
        evaluate_general=ConversationSet("general", "test", list(CONVERSATIONS), "1" * 64),
    )


@pytest.fixture(scope="module")
def models(model_folder, tmp_path_factory):
    aligned = save_tiny_model(tmp_path_factory.mktemp("aligned"), seed=3)
    return {"base": model_folder, "refined": model_folder, "aligned": aligned}


def evaluate(settings, folder, models, data):
    settings = settings.model_copy(update={"output": str(folder.parent), "name": folder.name})
    run.evaluate_models(settings, models, data, ONE_RANK)


def test_every_model_is_measured_and_the_listed_ones_generate(tmp_path, models, data):
    evaluate(recipe(), tmp_path, models, data)
    home = tmp_path / "evaluate"
    for model in ("base", "aligned"):
        for benchmark, size, metric in (("seeming", 6, "compliance_rate"), ("toxic", 7, "refusal_rate")):
            folder = home / model / benchmark
            assert sorted(path.name for path in folder.iterdir()) == [
                "generations.jsonl", "scores.json", "verdicts.xstest_strings.jsonl",
            ]  # fmt: skip
            scores = read_json(folder / "scores.json")
            assert (scores["metric"], scores["n"], scores["judge"]) == (metric, size, "xstest_strings")
            assert scores["low"] <= scores["value"] <= scores["high"]
    assert sorted(path.name for path in (home / "refined").iterdir()) == ["cost.json", "general_loss.json"]
    losses = {model: read_json(home / model / "general_loss.json") for model in models}
    assert losses["base"] == losses["refined"]
    assert losses["base"]["loss"] != losses["aligned"]["loss"]
    assert losses["base"]["n"] == len(CONVERSATIONS) and losses["base"]["too_long"] == 0
    cost = read_json(home / "base" / "cost.json")
    rows = read_jsonl(home / "base/seeming/generations.jsonl") + read_jsonl(home / "base/toxic/generations.jsonl")
    assert cost["generated_tokens"] == sum(row["tokens"] for row in rows)
    assert cost["seconds"] > 0 and cost["device"].startswith("CPU") and cost["ranks"] == 1


DAMAGE = [b"", b"{}", b"[]", b"null", b'{"id": "p0", "prom', b"\0" * 20, b"[" * 9999, b'{"parts": [1], "tasks": 1}\n']


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_results_are_computed_again(tmp_path, models, data, content):
    """Files that a crash left empty or torn: the same results, without a stack trace."""
    only = {"base": models["base"]}
    evaluate(recipe(), tmp_path, only, data)
    files = sorted(path for path in (tmp_path / "evaluate").rglob("*.json*") if path.name != "cost.json")
    before = {path: path.read_bytes() for path in files}
    for path in [*files, tmp_path / "evaluate/base/cost.json"]:
        path.write_bytes(content)
    evaluate(recipe(), tmp_path, only, data)
    assert {path: path.read_bytes() for path in files} == before


def test_finished_results_are_reused(tmp_path, models, data, monkeypatch, capsys):
    evaluate(recipe(), tmp_path, models, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    scores = tmp_path / "evaluate/base/toxic/scores.json"
    scores.unlink()  # judged again without a model

    def no_model(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluated, "load_model", no_model)
    evaluate(recipe(), tmp_path, models, data)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
    assert "already done" in capsys.readouterr().err


def test_kept_answers_get_the_categories_and_pairs_that_their_prompts_have_now(tmp_path, models, data, monkeypatch):
    evaluate(recipe(), tmp_path, {"base": models["base"]}, data)
    monkeypatch.delattr(evaluated, "load_model")  # answers do not depend on either
    seeming = data.benchmarks[0]
    rows = [replace(row, category="other", pair=f"pair {row.id}") for row in seeming.prompts.rows]
    data.benchmarks[0] = seeming._replace(prompts=replace(seeming.prompts, rows=rows))
    file = tmp_path / "evaluate/base/seeming/generations.jsonl"
    written = read_jsonl(file)
    damaged = {"context": [{"role": "system", "content": "refuse"}], "attack": {"request": "else"}}
    write_jsonl(file, [row | damaged for row in written])  # which judges would read
    evaluate(recipe(), tmp_path, {"base": models["base"]}, data)
    answers = read_jsonl(file)
    assert all(damaged.keys().isdisjoint(row) for row in answers)
    assert [(row["category"], row["pair"]) for row in answers] == [("other", row.pair) for row in rows]
    assert list(read_json(tmp_path / "evaluate/base/seeming/scores.json")["by_category"]) == ["other"]


def test_only_missing_results_are_computed(tmp_path, models, data, capsys):
    evaluate(recipe(models=["base"]), tmp_path, {"base": models["base"]}, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    (tmp_path / "evaluate/base/toxic/generations.jsonl").unlink()
    capsys.readouterr()
    evaluate(recipe(models=["base"]), tmp_path, {"base": models["base"]}, data)
    log = capsys.readouterr().err
    assert "toxic, 7 prompts" in log and "seeming" not in log and "loss on" not in log
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_another_model_at_the_same_path_is_evaluated_again(tmp_path, models, data, capsys):
    evaluate(recipe(models=["base"]), tmp_path, {"base": models["base"]}, data)
    first = read_json(tmp_path / "evaluate/base/general_loss.json")
    evaluate(recipe(models=["base"]), tmp_path, {"base": models["aligned"]}, data)
    assert "generating again" in capsys.readouterr().err
    assert read_json(tmp_path / "evaluate/base/general_loss.json")["loss"] != first["loss"]
    cost = read_json(tmp_path / "evaluate/base/cost.json")
    assert set(cost["parts"]) == {"seeming", "toxic", "general_loss"}


def test_models_are_identified_by_their_content(tmp_path, models):
    copy = save_tiny_model(tmp_path / "copy")
    assert model_hash(copy) == model_hash(models["base"]) != model_hash(models["aligned"])
    (copy / "README.md").write_text("no part of the model")
    assert model_hash(copy) == model_hash(models["base"])
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert model_hash(copy) != model_hash(models["base"])


def test_conversations_longer_than_the_context_are_dropped_and_counted(tmp_path, models, data, capsys):
    data.evaluate_general.rows.append(TOO_LONG)
    evaluate(recipe(), tmp_path, {"refined": models["refined"]}, data)
    result = read_json(tmp_path / "evaluate/refined/general_loss.json")
    assert (result["n"], result["too_long"]) == (len(CONVERSATIONS), 1)
    assert "1 conversations left out" in capsys.readouterr().err


def test_no_conversation_within_the_context_is_an_error(tmp_path, models, data):
    data.evaluate_general = ConversationSet("general", "test", [TOO_LONG], "1" * 64)
    with pytest.raises(UserError, match="evaluate.general: none of the 1 conversations fits"):
        evaluate(recipe(), tmp_path, {"refined": models["refined"]}, data)


def test_log_odds_stand_next_to_the_answers(tmp_path, models, data):
    refusals = [
        Conversation(f"r{i}", ({"role": "user", "content": "x"}, {"role": "assistant", "content": "I cannot do that."}))
        for i in range(5)
    ]
    data.refusal_examples = ConversationSet("refusals", "test", refusals, "2" * 64)
    data.ordinary_examples = ConversationSet("general", "test", list(CONVERSATIONS), "3" * 64)
    evaluate(recipe(), tmp_path, models, data)
    home = tmp_path / "evaluate/aligned"
    rows = read_jsonl(home / "seeming/log_odds.jsonl")
    assert [row["id"] for row in rows] == [prompt.id for prompt in PROMPTS[:6]]
    openings = read_json(home / "openings.json")["openings"]
    assert set(rows[0]["openings"]) == {opening["text"] for opening in openings}
    assert read_json(home / "cost.json")["parts"]["log_odds"]["prompts"] == len(PROMPTS)
    assert not (tmp_path / "evaluate/refined/openings.json").exists()
    assert rows[0]["log_odds"] != read_jsonl(tmp_path / "evaluate/base/seeming/log_odds.jsonl")[0]["log_odds"]


def test_models_without_refusal_openings_are_evaluated_without_log_odds(tmp_path, models, data, capsys):
    data.refusal_examples = data.ordinary_examples = ConversationSet("general", "test", [], "3" * 64)
    earlier = [tmp_path / "evaluate/base" / name for name in ("seeming/log_odds.jsonl", "openings.json")]
    for file in earlier:  # of a model that was evaluated into this folder before
        write_json(file, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_odds, "published_phrases", list)
        evaluate(recipe(models=["base"]), tmp_path, {"base": models["base"]}, data)
    assert "evaluate base: no refusal log-odds: no refusal opening found" in capsys.readouterr().err
    assert (tmp_path / "evaluate/base/seeming/scores.json").exists() and not any(file.exists() for file in earlier)
