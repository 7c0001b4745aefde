"""Rationale-only: leading boilerplate is removed from refusals, and nothing else."""

import pytest
from small_runs import the_error, write_recipe, write_rows
from tiny import make_model

from dcr_ds.augment.rationales import rationale_only, without_boilerplate
from dcr_ds.cli import main
from dcr_ds.data import Conversation, read_conversations
from dcr_ds.files import read_jsonl
from dcr_ds.judges import Answer, load_judge, verdicts
from dcr_ds.recipe import DataSource, load_recipe


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("I'm sorry, but I can't help with that. It hurts people.", "It hurts people."),
        ("I’m sorry. I cannot do that!  Poison kills. Call a doctor.", "Poison kills. Call a doctor."),
        ("As an AI language model, I cannot judge that.\n\nThe law is clear.", "The law is clear."),
        ('I won\'t write "hate mail." It wounds.', "It wounds."),
        ("It hurts people. I can't help with that.", None),
        ("I am sorry to hear that. Please call a friend.", None),
        ("1. Wait.\n2. Breathe.", None),
        ("I'm sorry, but I can't help with that.", ""),
        ("I cannot help with that; it is a crime", ""),
    ],
)
def test_leading_sentences_that_decline_or_apologise_are_removed(answer, left):
    assert without_boilerplate(answer) == left


def test_what_remains_is_the_end_of_the_answer_and_no_boilerplate():
    for row in read_conversations(DataSource(), "refusals").rows:
        left = without_boilerplate(row.response)
        assert left is None or (row.response.endswith(left) and left != row.response)
        assert not left or without_boilerplate(left) is None


def test_fewer_answers_count_as_refusals():
    rows = read_conversations(DataSource(), "refusals").rows
    refused = [
        sum(
            v.label == "full_refusal"
            for v in verdicts(load_judge("rules"), [Answer(r.prompt, r.response) for r in part])
        )
        for part in (rows, rationale_only(rows)[0])
    ]
    assert refused[1] < refused[0] / 2


def test_rows_that_cannot_be_changed_stay_and_are_counted():
    texts = ["No. It burns.", "I can't help with that.", "I can't help with that. It burns."]
    rows = [
        Conversation(str(n), ({"role": "user", "content": f"burn {n}"}, {"role": "assistant", "content": text}))
        for n, text in enumerate(texts)
    ]
    changed, notes = rationale_only(rows)
    assert [row.response for row in changed] == [*texts[:2], "It burns."]
    assert [row.prompt for row in changed] == [row.prompt for row in rows]
    assert "from 1 of 3" in notes[0] and "1 kept" in notes[1] and "1 kept" in notes[2]


@pytest.fixture
def recipe(tmp_path):
    path = write_recipe(tmp_path, make_model(tmp_path / "tiny", layers=2))
    rows = [{"prompt": f"burn {n}", "response": f"I'm sorry, but I can't do that. Fire {n} kills."} for n in range(6)]
    write_rows(tmp_path / "refusals.jsonl", rows)
    return path


def test_the_command_writes_a_recipe_that_trains(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["baseline", "rationale-only", str(recipe), "--out", str(out), "--seed", "3"]) == 0
    assert "6 of 6" in capsys.readouterr().out
    assert [row["messages"][-1]["content"] for row in read_jsonl(out / "refusals.jsonl")] == [
        f"Fire {n} kills." for n in range(6)
    ]
    written = load_recipe(str(out / "recipe.yaml"))
    assert (written.stages, written.seed, written.name) == (["align"], 3, "run-rationale-only")
    assert main(["train", str(out / "recipe.yaml")]) == 0
    assert (written.folder / "align" / "model").is_dir()


def test_bad_input_is_refused_and_nothing_is_written(recipe, tmp_path, capsys):
    out = tmp_path / "out"

    def error(*words: str) -> str:
        assert main(["baseline", "rationale-only", *words]) == 2
        return the_error(capsys.readouterr().err)

    assert "align.method is dpo" in error(str(recipe), "--align.method", "dpo", "--out", str(out))
    assert "no align" in error(str(recipe), "--stages", "[refine]", "--out", str(out))
    assert "exists already" in error(str(recipe), "--out", str(tmp_path))
    assert "no such recipe" in error(str(tmp_path / "none.yaml"), "--out", str(out))
    assert "no answer was changed" in error(
        str(recipe), "--data.refusals", str(tmp_path / "general.jsonl"), "--out", str(out)
    )
    write_rows(tmp_path / "asked.jsonl", [{"prompt": "burn 3"}])
    assert "overlap" in error(str(recipe), "--stages", "[align, evaluate]", "--out", str(out))
    assert not out.exists()
