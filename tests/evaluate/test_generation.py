import json

import pytest
import torch
from tiny_models import ONE, PROMPTS, answer_in_child, questions_for, run_children
from transformers import GenerationConfig

from dcr_ds.data import Prompt
from dcr_ds.errors import UserError
from dcr_ds.evaluate import generate
from dcr_ds.evaluate.answers import are_answered
from dcr_ds.evaluate.generate import answer_questions, check_context, make_batches, prepare_questions
from dcr_ds.files import read_jsonl
from dcr_ds.models.chat import encode_prompt, turn_end_ids


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """The bytes of the finished file of a run nobody disturbed."""
    model, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path_factory.mktemp("undisturbed") / "generations.jsonl")
    answer_questions(questions, model, tokenizer, ONE)
    return questions.file.read_bytes()


def test_rows_say_what_was_asked_and_answered(tiny, undisturbed):
    model, tokenizer = tiny
    rows = [json.loads(line) for line in undisturbed.splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [(prompt.id, prompt.prompt) for prompt in PROMPTS]
    assert {row["finish"] for row in rows} == {"stop", "length"}  # the tiny model does both
    assert all(row["tokens"] == 12 for row in rows if row["finish"] == "length")
    assert all(1 <= row["tokens"] <= 12 for row in rows)
    assert all("<|" not in row["completion"] for row in rows)
    assert all(row["completion"] == row["completion"].strip() for row in rows)
    assert len({(row["template_hash"], row["settings_hash"]) for row in rows}) == 1


def test_batched_answers_equal_greedy_steps_one_prompt_at_a_time(tiny, undisturbed):
    model, tokenizer = tiny
    ends = turn_end_ids(tokenizer)
    for row in map(json.loads, undisturbed.splitlines()):
        ids = encode_prompt(tokenizer, row["prompt"])
        prompt_tokens = len(ids)
        with torch.inference_mode():
            while len(ids) < prompt_tokens + 12 and ids[-1:] != ends[:1]:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        new = ids[prompt_tokens:]
        assert row["tokens"] == len(new)
        assert row["finish"] == ("stop" if new[-1] in ends else "length")
        assert row["completion"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_sampling_defaults_of_the_model_folder_play_no_part(tiny, undisturbed, tmp_path):
    model, tokenizer = tiny
    model.generation_config = GenerationConfig(repetition_penalty=3.0, do_sample=True, temperature=9.0)
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl")
    answer_questions(questions, model, tokenizer, ONE)
    assert questions.file.read_bytes() == undisturbed


def test_a_finished_file_is_recognised(tiny, undisturbed, tmp_path):
    _, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl")
    assert not are_answered(questions)
    questions.file.write_bytes(undisturbed)
    assert are_answered(questions)
    questions.file.write_bytes(b"\n".join(undisturbed.splitlines()[:-1]) + b"\n")
    assert not are_answered(questions)


@pytest.mark.parametrize("share", [0.001, 0.13, 0.37, 0.62, 0.88, 0.999])
def test_a_file_torn_at_any_byte_ends_up_the_same(tiny, undisturbed, tmp_path, share):
    model, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl")
    questions.file.write_bytes(undisturbed[: int(len(undisturbed) * share)])
    answer_questions(questions, model, tokenizer, ONE)
    assert questions.file.read_bytes() == undisturbed


def test_only_missing_batches_are_generated_and_as_the_same_batch(tiny, undisturbed, tmp_path, monkeypatch):
    model, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl")
    batches = make_batches([len(ids) for ids in questions.ids], 3)
    lines = undisturbed.splitlines(keepends=True)
    there = [
        *batches[0],
        *batches[1],
        *batches[3][:-1],
    ]  # of batch 3 one row is missing: all of it is done again
    questions.file.write_bytes(b"".join(lines[index] for index in there))
    asked, original = [], generate._generate

    def noted(questions, batch, *rest):
        asked.append(batch)
        return original(questions, batch, *rest)

    monkeypatch.setattr(generate, "_generate", noted)
    answer_questions(questions, model, tokenizer, ONE)
    assert asked == [batches[2], batches[3], batches[4]]
    assert questions.file.read_bytes() == undisturbed


@pytest.mark.parametrize("change", [{"max_new_tokens": 5}, {"batch_size": 4}])
def test_other_settings_make_the_file_anew_and_say_so(tiny, undisturbed, tmp_path, capsys, change):
    model, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl", **change)
    questions.file.write_bytes(undisturbed)
    assert not are_answered(questions)
    answer_questions(questions, model, tokenizer, ONE)
    assert "generated anew" in capsys.readouterr().err
    rows = read_jsonl(questions.file)
    assert len(rows) == len(PROMPTS) and are_answered(questions)
    assert all(row["settings_hash"] != json.loads(undisturbed.splitlines()[0])["settings_hash"] for row in rows)


def test_settings_hash_covers_model_prompts_and_template_but_not_the_path(tiny, tmp_path, monkeypatch):
    _, tokenizer = tiny

    def hash_with(file="a", prompts=PROMPTS, facts=None):
        facts = facts or {"content": "x"}
        return prepare_questions(
            "b", tmp_path / file, prompts, tokenizer, max_new_tokens=8, batch_size=2, model_facts=facts
        ).settings_hash

    assert hash_with() == hash_with(file="elsewhere")
    assert hash_with() != hash_with(facts={"content": "y"})
    assert hash_with() != hash_with(prompts=[*PROMPTS[:-1], Prompt(PROMPTS[-1].id, "other")])
    before = hash_with()
    monkeypatch.setattr(tokenizer, "chat_template", "x" + tokenizer.chat_template)
    assert hash_with() != before


def test_batches_hold_every_prompt_once_longest_first():
    lengths = [3, 9, 9, 1, 5, 7, 2]
    batches = make_batches(lengths, 3)
    assert batches == [[1, 2, 5], [4, 0, 6], [3]]
    assert make_batches([], 3) == []


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tiny, tmp_path):
    _, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "g.jsonl")
    longest = max(map(len, questions.ids))
    check_context(questions, longest + 12)
    check_context(questions, None)
    with pytest.raises(UserError, match="benchmark tiny: prompt p.*max_new_tokens=12"):
        check_context(questions, longest + 11)


@pytest.mark.parametrize("kill", ["after 1", "after 4", "at rename"])
def test_kill_9_then_going_on_ends_with_the_same_rows(tiny, model_folder, undisturbed, tmp_path, kill):
    model, tokenizer = tiny
    questions = questions_for(tokenizer, tmp_path / "generations.jsonl")
    assert run_children(answer_in_child, 1, model_folder, questions.file, tmp_path / "r", kill) == [-9]
    assert not are_answered(questions)
    if kill == "after 4":  # and torn in the middle of the fifth batch
        with questions.file.open("ab") as file:
            file.write(undisturbed[:70])
    answer_questions(questions, model, tokenizer, ONE)
    assert questions.file.read_bytes() == undisturbed


def test_two_ranks_write_the_rows_of_one(model_folder, undisturbed, tmp_path):
    file = tmp_path / "generations.jsonl"
    assert run_children(answer_in_child, 2, model_folder, file, tmp_path / "r", "nowhere") == [0, 0]
    assert file.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["generations.jsonl"]


@pytest.mark.parametrize("kill", ["after 2", "at unlink"])
def test_two_killed_ranks_are_gone_on_by_one(tiny, model_folder, undisturbed, tmp_path, kill):
    model, tokenizer = tiny
    file = tmp_path / "generations.jsonl"
    assert -9 in run_children(answer_in_child, 2, model_folder, file, tmp_path / "r", kill)
    assert len(list(tmp_path.glob("generations.rank*.jsonl"))) == 2
    answer_questions(questions_for(tokenizer, file), model, tokenizer, ONE)
    assert file.read_bytes() == undisturbed
    assert not list(tmp_path.glob("generations.rank*"))
