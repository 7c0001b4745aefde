"""Data are encoded before training: unknown token ids, rows longer than the context, templates that vary."""

import json

import pytest
from small_runs import ROWS, write_rows
from tiny import make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from dcr_ds.recipe import Recipe
from dcr_ds.run.tokens import bos_note, hash_rows, repeats_note, warmup_note

EXTRA = "<extra>"


@pytest.fixture
def extend(place):
    """Add a token to the tokenizer that the model's embedding does not have."""
    folder = place / "model"
    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<filler {i}>" for i in range(config["vocab_size"] - len(tokenizer))])
    tokenizer.add_tokens([EXTRA])
    tokenizer.save_pretrained(folder)
    return config["vocab_size"]


WHERE = {  # the set, the field with the token, and the name of the set in the message
    "seemingly_toxic": ("prompt", "data.seemingly_toxic"),
    "toxic": ("prompt", "data.toxic"),
    "general": ("response", "data.general"),
    "refusals": ("prompt", "data.refusals"),
    "asked": ("prompt", "benchmark asked"),
    "measured": ("response", "evaluate.general"),
}


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize("name", WHERE)
def test_a_token_that_the_model_lacks_is_found_before_training(extend, place, refused, run_folder, name, options):
    field, shown = WHERE[name]
    rows = [{**row, "id": f"row {number}"} for number, row in enumerate(ROWS[name])]
    rows[1][field] += EXTRA
    write_rows(place / f"{name}.jsonl", rows)
    message = refused("--stages", "[refine,align,evaluate]", *options)
    assert message.startswith(f"{shown}, row row 1: token {extend} ('{EXTRA}') is not in the model's vocabulary")
    assert f"ends at {extend - 1}" in message and "resize_token_embeddings" in message
    assert not run_folder.stage("refine").folder.exists()


def test_tokens_that_no_row_contains_are_not_an_error(extend, train, run_folder):
    train("--stages", "[refine]")
    assert run_folder.stage("refine").is_done


def test_rows_beyond_the_context_are_left_out_and_noted(place, train, run_folder):
    file = place / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 120}))
    rows = [*ROWS["general"], {"prompt": "describe " + "many " * 30, "response": "Here they are."}]
    write_rows(place / "general.jsonl", rows)
    noted = train("--stages", "[refine,align]", "--refine.max_length", "900", "--align.max_length", "900")
    left_out = "conversations longer than the 120 tokens of the model's context left out"
    assert f"data.general: 1 {left_out} of the retain term\n" in noted
    assert f"data.general: 1 of {len(rows)} {left_out}\n" in noted
    assert json.loads(run_folder.stage("align").summary.read_text())["num_general"] == len(ROWS["general"])


def test_a_batch_with_more_samples_than_there_are_is_noted():
    assert repeats_note("align.global_batch", 8, 8) is None
    assert repeats_note("align.global_batch", 9, 8).startswith("WARNING: align.global_batch = 9, and there are 8")


def test_a_warmup_longer_than_the_stage_is_noted(train):
    repeats = ("--refine.retain_batch", "9")
    noted = train("--stages", "[refine]", "--refine.warmup_steps", "40", "--refine.max_steps", "2", *repeats)
    assert "WARNING: refine.retain_batch = 9, and there are 5 samples: a step repeats some" in noted
    assert "WARNING: refine: warmup_steps = 40, and the stage has 2 steps, so its learning rate ends at 2% of" in noted


@pytest.mark.parametrize(("warmup", "steps", "share"), [(0, 1, None), (9, 10, None), (10, 10, "90%"), (100, 3, "2%")])
def test_the_share_of_the_peak_that_a_warmup_reaches(warmup, steps, share):
    note = warmup_note("align", Recipe(align={"warmup_steps": warmup}).align, steps)
    assert (note is None) if share is None else f"ends at {share} of align.learning_rate" in note


def set_template(place, text):
    """Put text before the chat template, where each prompt gets it."""
    folder = place / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = text + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def test_a_run_that_is_resumed_on_another_day_trains_on_the_same_tokens(place, train, run_folder, monkeypatch):
    from datetime import datetime

    set_template(place, "{{ strftime_now('%d %b %Y') }}")

    class Later(datetime):
        now = classmethod(lambda cls, tz=None: datetime(2040, 1, 1))

    train("--stages", "[refine]", stop=True)
    before = json.loads(run_folder.stage("refine").identity.read_text())["tokens"]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    train("--stages", "[refine]")
    assert json.loads(run_folder.stage("refine").identity.read_text())["tokens"] == before


def test_other_tokens_are_refused_on_resume(place, train, run_folder, refused):
    train("--stages", "[refine]", stop=True)
    identity = json.loads(run_folder.stage("refine").identity.read_text())
    run_folder.stage("refine").identity.write_text(json.dumps(identity | {"tokens": "0" * 64}))
    message = refused("--stages", "[refine]")
    assert "refine began with something else" in message and "token ids of the data: 000" in message


def test_a_finished_stage_is_not_encoded_again(train, run_folder):
    train("--stages", "[refine]")
    identity = json.loads(run_folder.stage("refine").identity.read_text())
    assert len(identity["tokens"]) == 64
    run_folder.stage("refine").identity.write_text(json.dumps(identity | {"tokens": "0" * 64}))
    assert "already done" in train("--stages", "[refine]")


@pytest.mark.parametrize("other", [[[1, 2], [3]], [[1], [2, 3]], [[3], [2], [1]], [[1, 2, 3]], [[1], [2], [4]]])
def test_hashes_of_other_rows_differ(other):
    assert hash_rows([[1], [2], [3]]) == hash_rows([[1], [2], [3]]) != hash_rows(other)


def test_weight_decay_of_an_older_version_is_not_resumed(train, run_folder, refused):
    options = ["--stages", "[refine]", "--refine.weight_decay", "0.1"]
    train(*options, stop=True)
    identity = json.loads(run_folder.stage("refine").identity.read_text())
    del identity["weight_decay"]
    run_folder.stage("refine").identity.write_text(json.dumps(identity))
    message = refused(*options)
    assert "weight_decay also applied to norms, biases and embeddings" in message and "--redo refine" in message
    assert json.loads(run_folder.stage("refine").identity.read_text()) == identity
    train(*options, "--redo", "refine")


def test_an_older_run_without_weight_decay_is_resumed(train, run_folder):
    train("--stages", "[refine]", stop=True)
    identity = json.loads(run_folder.stage("refine").identity.read_text())
    del identity["tokens"]
    run_folder.stage("refine").identity.write_text(json.dumps(identity))
    train("--stages", "[refine]")


def test_prompts_without_the_bos_of_the_tokenizer_are_a_warning():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|pad|>"
    assert bos_note(tokenizer) is None  # it does not add its BOS by itself
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert bos_note(tokenizer).endswith("begin the template with {{ bos_token }}")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert bos_note(tokenizer) is None
