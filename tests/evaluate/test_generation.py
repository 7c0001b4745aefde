import json

import pytest
import torch
from tiny_models import ONE_RANK, PROMPTS, answer_in_child, generations_for, run_children
from transformers import GenerationConfig

from dcr_ds.data import Benchmark, Prompt, PromptSet
from dcr_ds.errors import UserError
from dcr_ds.evaluate import generate
from dcr_ds.evaluate.generate import Decoding, check_context, generate_missing, make_batches, prepare_generations
from dcr_ds.files import read_jsonl
from dcr_ds.models.chat import encode_prompt, turn_end_ids


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """The bytes of the finished file of an uninterrupted run."""
    model, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path_factory.mktemp("undisturbed") / "generations.jsonl")
    generate_missing(generations, model, tokenizer, ONE_RANK)
    return generations.file.read_bytes()


def test_rows_contain_prompt_and_answer(tiny, uninterrupted):
    model, tokenizer = tiny
    rows = [json.loads(line) for line in uninterrupted.splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [(prompt.id, prompt.prompt) for prompt in PROMPTS]
    assert {row["finish"] for row in rows} == {"stop", "length"}  # the tiny model gives answers of both kinds
    assert all(row["tokens"] == 12 for row in rows if row["finish"] == "length")
    assert all(1 <= row["tokens"] <= 12 for row in rows)
    assert all("<|" not in row["completion"] for row in rows)
    assert all(row["completion"] == row["completion"].strip() for row in rows)
    assert len({(row["template_hash"], row["settings_hash"]) for row in rows}) == 1


def test_batched_answers_equal_greedy_steps_one_prompt_at_a_time(tiny, uninterrupted):
    model, tokenizer = tiny
    ends = turn_end_ids(tokenizer)
    for row in map(json.loads, uninterrupted.splitlines()):
        ids = encode_prompt(tokenizer, row["prompt"])
        prompt_tokens = len(ids)
        with torch.inference_mode():
            while len(ids) < prompt_tokens + 12 and ids[-1:] != ends[:1]:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        new = ids[prompt_tokens:]
        assert row["tokens"] == len(new)
        assert row["finish"] == ("stop" if new[-1] in ends else "length")
        assert row["completion"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_sampling_defaults_of_the_model_are_ignored(tiny, uninterrupted, tmp_path):
    model, tokenizer = tiny
    model.generation_config = GenerationConfig(repetition_penalty=3.0, do_sample=True, temperature=9.0)
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl")
    generate_missing(generations, model, tokenizer, ONE_RANK)
    assert generations.file.read_bytes() == uninterrupted


def test_a_finished_file_is_recognised(tiny, uninterrupted, tmp_path):
    _, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl")
    assert not generations.is_complete
    generations.file.write_bytes(uninterrupted)
    assert generations.is_complete
    generations.file.write_bytes(b"\n".join(uninterrupted.splitlines()[:-1]) + b"\n")
    assert not generations.is_complete


@pytest.mark.parametrize("share", [0.001, 0.13, 0.37, 0.62, 0.88, 0.999])
def test_a_file_truncated_at_any_byte_is_completed_to_the_same_file(tiny, uninterrupted, tmp_path, share):
    model, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl")
    generations.file.write_bytes(uninterrupted[: int(len(uninterrupted) * share)])
    generate_missing(generations, model, tokenizer, ONE_RANK)
    assert generations.file.read_bytes() == uninterrupted


def test_only_missing_batches_are_generated_with_the_same_composition(tiny, uninterrupted, tmp_path, monkeypatch):
    model, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl")
    batches = make_batches([len(ids) for ids in generations.ids], 3)
    lines = uninterrupted.splitlines(keepends=True)
    there = [
        *batches[0],
        *batches[1],
        *batches[3][:-1],
    ]  # batch 3 lacks a row, so that all of it is generated again
    generations.file.write_bytes(b"".join(lines[index] for index in there))
    generated, original = [], generate._new_tokens

    def noted(generations, batch, *rest):
        generated.append(batch)
        return original(generations, batch, *rest)

    monkeypatch.setattr(generate, "_new_tokens", noted)
    generate_missing(generations, model, tokenizer, ONE_RANK)
    assert generated == [batches[2], batches[3], batches[4]]
    assert generations.file.read_bytes() == uninterrupted


@pytest.mark.parametrize("change", [{"max_new_tokens": 5}, {"batch_size": 4}])
def test_other_settings_replace_the_file_with_a_message(tiny, uninterrupted, tmp_path, capsys, change):
    model, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl", **change)
    generations.file.write_bytes(uninterrupted)
    assert not generations.is_complete
    generate_missing(generations, model, tokenizer, ONE_RANK)
    assert "generating again" in capsys.readouterr().err
    rows = read_jsonl(generations.file)
    assert len(rows) == len(PROMPTS) and generations.is_complete
    assert all(row["settings_hash"] != json.loads(uninterrupted.splitlines()[0])["settings_hash"] for row in rows)


def test_settings_hash_covers_model_prompts_and_template_but_not_the_path(tiny, tmp_path, monkeypatch):
    _, tokenizer = tiny

    def hash_with(file="a", prompts=PROMPTS, facts=None):
        facts = facts or {"content": "x"}
        benchmark = Benchmark("b", "comply", PromptSet("b", "test", prompts, "0" * 64))
        return prepare_generations(benchmark, tmp_path / file, tokenizer, Decoding(8, 2), facts).settings_hash

    assert hash_with() == hash_with(file="elsewhere")
    assert hash_with() != hash_with(facts={"content": "y"})
    assert hash_with() != hash_with(prompts=[*PROMPTS[:-1], Prompt(PROMPTS[-1].id, "other")])
    before = hash_with()
    monkeypatch.setattr(tokenizer, "chat_template", "x" + tokenizer.chat_template)
    assert hash_with() != before


def test_batches_contain_every_prompt_once_longest_first():
    lengths = [3, 9, 9, 1, 5, 7, 2]
    batches = make_batches(lengths, 3)
    assert batches == [[1, 2, 5], [4, 0, 6], [3]]
    assert make_batches([], 3) == []


def test_a_prompt_that_leaves_no_room_for_an_answer_is_an_error(tiny, tmp_path):
    _, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "g.jsonl")
    longest = max(map(len, generations.ids))
    check_context(generations, longest + 12)
    check_context(generations, None)
    with pytest.raises(UserError, match="benchmark tiny: prompt p.*max_new_tokens=12"):
        check_context(generations, longest + 11)
    with pytest.raises(UserError, match="max_new_tokens: 12 leaves no room for a prompt in .* of 12 tokens; lower it"):
        check_context(generations, 12)


@pytest.mark.parametrize("kill", ["after 1", "after 4", "at rename"])
def test_killed_generation_resumes_to_the_same_rows(tiny, model_folder, uninterrupted, tmp_path, kill):
    model, tokenizer = tiny
    generations = generations_for(tokenizer, tmp_path / "generations.jsonl")
    assert run_children(answer_in_child, 1, model_folder, generations.file, tmp_path / "r", kill) == [-9]
    assert not generations.is_complete
    if kill == "after 4":  # and truncated in the middle of the fifth batch
        with generations.file.open("ab") as file:
            file.write(uninterrupted[:70])
    generate_missing(generations, model, tokenizer, ONE_RANK)
    assert generations.file.read_bytes() == uninterrupted


def test_two_ranks_write_the_same_rows_as_one(model_folder, uninterrupted, tmp_path):
    file = tmp_path / "generations.jsonl"
    assert run_children(answer_in_child, 2, model_folder, file, tmp_path / "r", "nowhere") == [0, 0]
    assert file.read_bytes() == uninterrupted
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["generations.jsonl"]


@pytest.mark.parametrize("kill", ["after 2", "at unlink"])
def test_one_rank_resumes_after_two_killed_ranks(tiny, model_folder, uninterrupted, tmp_path, kill):
    model, tokenizer = tiny
    file = tmp_path / "generations.jsonl"
    assert -9 in run_children(answer_in_child, 2, model_folder, file, tmp_path / "r", kill)
    assert len(list(tmp_path.glob("generations.rank*.jsonl"))) == 2
    generate_missing(generations_for(tokenizer, file), model, tokenizer, ONE_RANK)
    assert file.read_bytes() == uninterrupted
    assert not list(tmp_path.glob("generations.rank*"))
