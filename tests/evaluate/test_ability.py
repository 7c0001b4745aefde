"""General ability through lm-eval, on local files, with a tiny random model."""

import json
from pathlib import Path

import pytest
import torch
from tiny import make_model

from dcr_ds.commands.ability import load_for_tasks, run
from dcr_ds.errors import UserError
from dcr_ds.evaluate.ability import TASKS, AbilityOptions, measure_ability
from dcr_ds.files import read_json, write_json, write_jsonl
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.template_variables import with_variables
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe.layout import RunFolder

pytest.importorskip("lm_eval", reason="general ability needs lm-eval")
ROWS = [
    {
        "question": f"What is {n} + {n}?",
        "choices": [str(2 * n), str(n), "none", "all"],
        "answer": n % 4,
        "subject": "sums",
    }
    for n in range(1, 7)
]

FIGURE = {"metric": "acc", "value": 0.5, "low": 0.2, "high": 0.8, "n": 2}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("ability") / "model")


@pytest.fixture
def local(tmp_path):
    """Local files in a folder whose name would be a pattern."""
    folder = tmp_path / "data [1]"
    folder.mkdir()
    for task in TASKS:
        (folder / f"{task}_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def best_choice(model, tokenizer, prompt: str, choices: list[str], space: str = " ") -> int:
    """The choice with the highest summed log-probability after the prompt, which is the definition of acc."""
    scores = []
    for choice in choices:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(f"{prompt}{space}{choice}").input_ids])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        scores.append(logits[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item())
    return scores.index(max(scores))


def test_accuracy_counts_the_most_likely_choice(model_folder, local):
    model = load_causal_lm(model_folder, torch.float32, "sdpa", torch.device("cpu"))
    tokenizer = load_tokenizer(model_folder)
    figure = measure_ability(model, tokenizer, AbilityOptions(["arc_easy"], local, batch_size=4))["arc_easy"]
    with torch.no_grad():
        answers = [
            best_choice(model, tokenizer, f"Question: {row['question']}\nAnswer:", row["choices"]) for row in ROWS
        ]
    expected = sum(answer == row["answer"] for answer, row in zip(answers, ROWS, strict=True)) / len(ROWS)
    assert figure["value"] == expected and figure["n"] == len(ROWS)
    assert figure["low"] < expected < figure["high"] or expected in (0, 1)


def test_questions_with_the_chat_template_of_training_and_evaluation(model_folder, local):
    model = load_causal_lm(model_folder, torch.float32, "sdpa", torch.device("cpu"))
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = "{{ 'on' if thinking else 'off' }} {{ messages[0]['content'] }}\n>"
    ours = load_tokenizer(model_folder)
    ours.chat_template = with_variables(tokenizer.chat_template, {"thinking": True})
    figure = measure_ability(model, ours, AbilityOptions(["arc_easy"], local, with_template=True))["arc_easy"]
    with torch.no_grad():
        prompts = [f"on Question: {row['question']}\nAnswer:\n>" for row in ROWS]
        pairs = zip(prompts, ROWS, strict=True)
        answers = [best_choice(model, tokenizer, prompt, row["choices"], space="") for prompt, row in pairs]
    expected = sum(answer == row["answer"] for answer, row in zip(answers, ROWS, strict=True)) / len(ROWS)
    assert figure["value"] == expected


def test_variables_of_a_run_reach_the_questions(model_folder, local, tmp_path, monkeypatch):
    (tmp_path / "t.jinja").write_text("{{ 'on' if thinking else 'off' }} {{ messages[0]['content'] }}")
    rendered = []
    monkeypatch.setattr(
        "dcr_ds.commands.ability.measure_ability",
        lambda model, tokenizer, options: rendered.append(tokenizer.chat_template) or {"piqa": FIGURE},
    )
    for thinking in (False, True):
        section = {"source": str(model_folder), "chat_template": str(tmp_path / "t.jinja")}
        recipe = {"model": section | {"chat_template_kwargs": {"thinking": thinking}}}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(recipe))
        run([str(tmp_path / "run"), "--tasks", "piqa", "--local-data", str(local), "--apply-chat-template"])
    assert [text.split("%}")[0] for text in rendered] == ["{% set thinking = false ", "{% set thinking = true "]


def test_results_of_an_evaluated_model_lie_beside_its_scores_and_damaged_ones_are_named(model_folder, local, tmp_path):
    recipe = {"model": {"source": str(model_folder)}, "stages": ["evaluate"], "evaluate": {"models": ["aligned"]}}
    home = RunFolder(tmp_path / "run")
    write_json(home.recipe, recipe)
    arguments = [str(home.folder), "--tasks", "piqa", "--local-data", str(local)]
    run(arguments)
    assert not home.model("base").folder.exists()
    result = read_json(home.model("aligned").ability)
    assert result["tasks"]["piqa"]["n"] == len(ROWS)
    write_json(home.model("aligned").ability, result | {"tasks": {"piqa": 0.5}})
    with pytest.raises(UserError, match=r"ability\.json: tasks\.piqa: .* \(got '0\.5'\); remove the file"):
        run(arguments)


@pytest.mark.parametrize(
    "task, changed, problem",
    [
        ("mmlu", {"choices": ["1", "2", "3"], "answer": 0}, "has 3 choices, mmlu needs 4"),
        ("mmlu", {"subject": None}, "no subject"),
        ("piqa", {"question": 7}, "question must be text"),
        ("piqa", {"choices": ["1", 2]}, "choices must be a list of texts"),
        ("piqa", {"choices": ["1"], "answer": 0}, "has 1 choices, piqa needs two or more"),
        ("piqa", {"answer": True}, "answer True is not an index"),
        ("piqa", None, "is not an object"),
    ],
)
def test_a_local_row_that_lm_eval_would_ask_wrongly_is_named(task, changed, problem, tmp_path):
    rows = [ROWS[0], None if changed is None else ROWS[1] | changed]
    (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"{task}\.jsonl, line 2: {problem}"):
        measure_ability(None, None, AbilityOptions([task], tmp_path))


def test_a_question_that_is_twice_in_a_file_is_named(model_folder, tmp_path):
    rows = [row | {"id": f"q{number}"} for number, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "piqa.jsonl", [*rows, rows[0]])
    with pytest.raises(UserError, match=f"line {len(rows) + 1}: the id 'q0' is also that of .*line 1; each question"):
        run([str(model_folder), "--tasks", "piqa", "--local-data", str(tmp_path)])


def test_subjects_may_number_their_questions_alike(model_folder, tmp_path):
    rows = [row | {"id": number % 2, "subject": f"s{number // 2}"} for number, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "mmlu.jsonl", rows)
    model = load_causal_lm(model_folder, torch.float32, "sdpa", torch.device("cpu"))
    figures = measure_ability(model, load_tokenizer(model_folder), AbilityOptions(["mmlu"], tmp_path))
    assert figures["mmlu"]["n"] == len(ROWS)


def test_another_set_whose_name_begins_like_a_task_is_not_taken_for_it(local):
    (local / "mmlu_pro_test.jsonl").write_text((local / "mmlu_test.jsonl").read_text())
    with pytest.raises(UserError, match=r"several files are of mmlu \(mmlu_pro_test\.jsonl, mmlu_test\.jsonl\)"):
        measure_ability(None, None, AbilityOptions(["mmlu"], local))


def test_an_edited_file_is_measured_again_and_runs_of_one_name_keep_their_rows(
    model_folder, local, tmp_path, monkeypatch, capsys
):
    """The edit changes no size."""
    asked = []
    monkeypatch.setattr(
        "dcr_ds.commands.ability.measure_ability", lambda *_: asked.append(1) or {"piqa": FIGURE | {"n": len(asked)}}
    )
    recipe = {"model": {"source": str(model_folder)}, "stages": ["evaluate"], "evaluate": {"models": ["aligned"]}}
    runs = [str(tmp_path / name / "run") for name in ("first", "second")]
    for folder in runs:
        write_json(RunFolder(Path(folder)).recipe, recipe)
    arguments = [*runs, "--tasks", "piqa", "--local-data", str(local)]
    for file in (local / "piqa_test.jsonl", local / "mmlu_test.jsonl"):
        run(arguments)
        file.write_text(file.read_text().replace('"answer": 1', '"answer": 0'))
    run(arguments)
    assert len(asked) == 4  # not for another task's file
    table = capsys.readouterr().out
    assert all(folder in table for folder in runs)
    with pytest.raises(UserError, match="is named twice"):
        run([runs[0], *arguments])


def test_an_open_block_of_reasoning_is_refused(model_folder, local):
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    with pytest.raises(UserError, match="opens a block of reasoning"):
        measure_ability(None, tokenizer, AbilityOptions(["piqa"], local, with_template=True))


def test_a_base_model_without_a_template_is_measured(local, tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    arguments = [str(folder), "--local-data", str(local), "--limit", "2", "--tasks", "piqa"]
    assert run(arguments) == 0
    with pytest.raises(UserError, match="no chat template"):
        run([*arguments, "--apply-chat-template"])


@pytest.mark.parametrize(("model_type", "attention"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_attention_is_one_that_the_architecture_has(tmp_path, model_type, attention):
    model = load_for_tasks(make_model(tmp_path, model_type, layers=1))
    assert model.config._attn_implementation == attention


def test_command_measures_every_task_and_writes_the_results(model_folder, local, tmp_path, capsys):
    out = tmp_path / "ability.json"
    assert run([str(model_folder), "--local-data", str(local), "--limit", "3", "--out", str(out)]) == 0
    (figures,) = json.loads(out.read_text()).values()
    assert list(figures) == list(TASKS) and all(figure["n"] == 3 for figure in figures.values())
    table = capsys.readouterr().out
    assert all(task in table for task in TASKS)


def test_all_models_are_checked_before_the_first_one_is_measured(model_folder, tmp_path, capsys):
    """There is no data to measure, so that the first model would be another error."""
    damaged = make_model(tmp_path / "damaged")
    (damaged / "config.json").unlink()
    for second in (damaged, tmp_path / "none"):
        with pytest.raises(UserError, match=str(second)):
            run([str(model_folder), str(second), "--local-data", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["dcr-ds ability", "--help"]),
        (["--tasks", "arc_eazy"], ["unknown task 'arc_eazy'", "arc_easy"]),
        (["--limit", "0"], ["--limit", "above 0"]),
        (["--tasks", "mmlu", "--local-data", "EMPTY"], ["no mmlu*.jsonl"]),
        (["--tasks", "piqa", "--local-data", "BROKEN"], ["piqa_test.jsonl, line 2", "choices"]),
        (["--tasks", "piqa"], ["piqa", "could not be loaded", "--local-data"]),
    ],
)
def test_bad_input_is_named(arguments, words, model_folder, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    rows = [ROWS[0], {key: value for key, value in ROWS[1].items() if key != "choices"}]
    (tmp_path / "BROKEN" / "piqa_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(tmp_path / word) if word.isupper() else word for word in arguments]
    with pytest.raises(UserError) as refused:
        run([*([str(model_folder)] if arguments else []), *arguments])
    for word in words:
        assert word in str(refused.value)
