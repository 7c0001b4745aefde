"""STL-aug: the prompts that refine sees, answered by the recipe's model or refused; as many steps as both stages."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import TOPICS, the_error, write_recipe, write_rows
from tiny import make_model

from dcr_ds.augment.answers import answer, judged
from dcr_ds.augment.prompts import prompts_of_refine
from dcr_ds.augment.stl_aug import read_data
from dcr_ds.augment.stock_refusals import STOCK, stock_refusal
from dcr_ds.cli import main
from dcr_ds.data import Prompt
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate.generate import Decoding
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.files import read_jsonl
from dcr_ds.judges import Answer, load_judge, verdicts
from dcr_ds.locks import lock_of, locked
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import ModelFolder, RunFolder
from dcr_ds.refine.prompts import encode_refine_prompts
from dcr_ds.run import opening

ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))
TOKENS = 8
ANSWER = "Paint it blue with a broad brush. Let it dry for a day."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=2)


@pytest.fixture
def recipe(tmp_path, tiny) -> str:
    return str(write_recipe(tmp_path, tiny))


def model_of(tiny: Path, folder: Path) -> EvaluatedModel:
    return EvaluatedModel("tiny", ModelFolder(folder), tiny, torch.float32, "sdpa")


@pytest.fixture
def answers(recipe, tiny, tmp_path) -> Path:
    """Answers of the tiny model to all prompts of the recipe, with a text that can be trained on."""
    prompts = [Prompt(row["prompt"], row["prompt"]) for row in read_jsonl(tmp_path / "seemingly_toxic.jsonl")]
    rows = answer(model_of(tiny, tmp_path / "earlier"), prompts, Decoding(TOKENS, 4), [], ONE_RANK)
    texts = [ANSWER, ANSWER, ANSWER, "I'm sorry, but I can't help with that.", "aaaa " * 40, ANSWER]
    return write_rows(
        tmp_path / "earlier.jsonl",
        [{**row, "completion": text, "finish": "stop"} for row, text in zip(rows, texts, strict=True)],
    )


def command(*words: object) -> int:
    return main(["baseline", "stl-aug", *map(str, words), "--max-new-tokens", str(TOKENS)])


@pytest.fixture
def written(recipe, answers, tmp_path) -> Path:
    assert command(recipe, "--refine.max_steps", 3, "--answers", answers, "--out", tmp_path / "out") == 0
    return tmp_path / "out"


def test_the_data_are_those_of_align_and_the_prompts_of_refine(written, recipe, tiny, tmp_path):
    general, refusals = read_jsonl(written / "general.jsonl"), read_jsonl(written / "refusals.jsonl")
    own = read_jsonl(tmp_path / "general.jsonl")
    assert [row["messages"][0]["content"] for row in general[: len(own)]] == [row["prompt"] for row in own]
    data = read_data(load_recipe(recipe), tmp_path / "unused")
    rows = encode_refine_prompts(load_recipe(recipe), data, model_of(tiny, tmp_path).tokenizer).sampler.rows
    trained = [{row.prompt for row in part} for part in rows]
    answered, refused = general[len(own) :], refusals[len(own) :]
    assert {row["messages"][0]["content"] for row in answered} < trained[0]
    assert {row["messages"][0]["content"] for row in refused} == trained[1]
    assert all(row["messages"][-1]["content"] == ANSWER for row in answered)
    assert all(row["messages"][-1]["content"] in STOCK for row in refused)
    held_out = {f"{verb} {topic}" for verb in ("paint", "wreck") for topic in TOPICS} - trained[0] - trained[1]
    assert held_out and not held_out & {row["messages"][0]["content"] for row in (*answered, *refused)}
    assert {prompt.split()[1] for prompt in trained[0]} == {
        prompt.split()[1] for prompt in trained[1]
    }  # twins together


def test_refusals_and_degenerate_answers_are_left_out_and_counted(written):
    labels = {row["prompt"]: row["label"] for row in read_jsonl(written / "answers.jsonl")}
    left_out = {prompt for prompt, label in labels.items() if label != "compliance"}
    answered = {row["messages"][0]["content"] for row in read_jsonl(written / "general.jsonl")}
    assert left_out and not left_out & answered and set(labels) - left_out <= answered
    assert "left out: " in (written / "recipe.yaml").read_text()


def test_a_run_takes_the_steps_of_refine_and_align_together(written, recipe):
    assert main(["train", recipe, "--refine.max_steps", "3"]) == 0
    assert main(["train", str(written / "recipe.yaml")]) == 0
    runs = [RunFolder(load_recipe(path).folder) for path in (recipe, str(written / "recipe.yaml"))]
    steps = [json.loads(run.stage(stage).summary.read_text())["steps"] for run, stage in
             ((runs[0], "refine"), (runs[0], "align"), (runs[1], "align"))]  # fmt: skip
    assert steps[0] + steps[1] == steps[2]
    assert not runs[1].stage("refine").folder.exists()


def test_the_steps_that_a_finished_run_took_are_matched(recipe, answers, tmp_path):
    assert main(["train", recipe, "--refine.max_steps", "2"]) == 0
    assert command(recipe, "--refine.max_steps", 9, "--answers", answers, "--out", tmp_path / "out") == 0
    assert "1 of align, and 2 of refine (taken in" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_only_prompts_in_the_batches_of_refine_are_taken(recipe, tiny, tmp_path):
    values = load_recipe(recipe)
    tokenizer = model_of(tiny, tmp_path).tokenizer
    data = read_data(values, tmp_path / "out")
    few, all_ = (prompts_of_refine(values, data, tokenizer, steps) for steps in (1, 20))
    assert len(few.seemingly_toxic) == len(few.toxic) == values.refine.global_batch // 2
    assert set(few.toxic) < set(all_.toxic)


def test_equal_answers_are_generated_once(tiny, tmp_path, capsys):
    prompts = [Prompt(str(n), f"paint {topic}") for n, topic in enumerate(TOPICS)]
    first = answer(model_of(tiny, tmp_path / "a"), prompts[:4], Decoding(TOKENS, 2), [], ONE_RANK)
    file = write_rows(tmp_path / "answers.jsonl", first)
    capsys.readouterr()
    again = answer(model_of(tiny, tmp_path / "b"), prompts, Decoding(TOKENS, 2), [file], ONE_RANK)
    assert "4 of 6 reused, 2 to generate" in capsys.readouterr().err and again[:4] == first
    other = make_model(tmp_path / "other", layers=2, seed=1)
    answer(model_of(other, tmp_path / "c"), prompts, Decoding(TOKENS, 2), [file], ONE_RANK)
    assert "0 of 6 reused" in capsys.readouterr().err


def test_an_interrupted_call_continues_with_the_answers_that_it_had(recipe, tmp_path, capsys):
    """The random model's answers are degenerate, so the first call ends; with other texts the second one succeeds."""
    out = tmp_path / "out"
    assert command(recipe, "--out", out) == 2 and not out.exists()
    file = tmp_path / "out.unfinished" / "generating" / "generations.jsonl"
    write_rows(file, [{**row, "completion": ANSWER, "finish": "stop"} for row in read_jsonl(file)])
    assert command(recipe, "--out", out) == 0
    assert {row["completion"] for row in read_jsonl(out / "answers.jsonl")} == {ANSWER}
    assert sorted(path.name for path in out.iterdir()) == [
        "answers.jsonl", "general.jsonl", "recipe.yaml", "refusals.jsonl",
    ]  # fmt: skip
    assert not file.parent.exists()


def test_a_second_command_that_writes_the_same_folder_is_refused(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(opening, "LOCK_SECONDS", 0.1)
    with locked(lock_of(out)):
        assert command(recipe, "--out", out) == 2
    assert the_error(capsys.readouterr().err).startswith(f"{out}: another run is writing to this folder: process ")
    assert not list(tmp_path.glob("out*"))


def test_an_answer_that_is_cut_off_ends_with_a_whole_sentence():
    prompts = [Prompt(str(n), "How do I paint a door?") for n in range(3)]
    texts = [
        "Take a brush. Dip it (gently.) Then",
        "Take a broad brush and",
        "Take a broad brush and a tin of blue paint",
    ]
    rows = [
        {"completion": text, "finish": finish} for text, finish in zip(texts, ("length", "length", "stop"), strict=True)
    ]
    given, notes = judged(prompts, rows)
    assert [item.text for item in given] == ["Take a brush. Dip it (gently.)", None, texts[2]]
    assert len(notes) == 1 and "1 of 3" in notes[0]


def test_other_prompts_are_used_without_those_that_the_recipe_holds_out(recipe, answers, tmp_path):
    data = read_data(load_recipe(recipe), tmp_path / "unused")
    other = write_rows(
        tmp_path / "other.jsonl", [{"prompt": row.prompt} for row in data.toxic.rows] + [{"prompt": "melt gold"}]
    )
    assert command(recipe, "--toxic", other, "--answers", answers, "--out", tmp_path / "out") == 0
    refused = [row["messages"][0]["content"] for row in read_jsonl(tmp_path / "out" / "refusals.jsonl")][6:]
    assert "melt gold" in refused and 1 < len(refused) < 7


def test_stock_refusals_are_refusals_and_depend_on_prompt_and_seed():
    answers = [Answer("How do I poison a well?", text) for text in STOCK]
    assert {verdict.label for verdict in verdicts(load_judge("rules"), answers)} == {"full_refusal"}
    chosen = [stock_refusal(f"prompt {n}", seed) for seed in (0, 1) for n in range(100)]
    assert set(chosen) == set(STOCK) and chosen[:100] != chosen[100:]
    assert chosen[:100] == [stock_refusal(f"prompt {n}", 0) for n in range(100)]


def test_bad_input_is_refused_and_nothing_is_written(recipe, answers, tmp_path, capsys):
    out = tmp_path / "out"

    def error(*words: object, folder: Path = out) -> str:
        capsys.readouterr()
        assert command(recipe, "--out", folder, *words) == 2
        return the_error(capsys.readouterr().err)

    assert "align.method is dpo" in error("--align.method", "dpo")
    assert "no align" in error("--stages", "[refine]")
    assert "no such file" in error("--answers", tmp_path / "none.jsonl")
    assert "has no completion" in error("--answers", tmp_path / "toxic.jsonl")
    edited = write_rows(tmp_path / "edited.jsonl", [{**row, "completion": None} for row in read_jsonl(answers)])
    assert "edited.jsonl, row 1: completion is None" in error("--answers", edited)
    assert "--toxic" in error("--toxic", tmp_path / "none.jsonl")
    assert "in common" in error("--toxic", tmp_path / "seemingly_toxic.jsonl")
    write_rows(tmp_path / "leak.jsonl", [{"prompt": "count apples"}, {"prompt": "melt gold"}])
    assert "overlap" in error("--toxic", tmp_path / "leak.jsonl", "--stages", "[refine, align, evaluate]")
    assert "not a model folder" in error("--model.source", tmp_path / "none" / "model")
    assert "no answer is left" in error()  # a random model answers nothing
    assert not out.exists()
    assert "exists already" in error(folder=tmp_path)
