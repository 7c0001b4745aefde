"""The data that a recipe's stages need are read, checked for overlaps, and described."""

import json

import pytest

from dcr_ds.data import load_data
from dcr_ds.recipe import Recipe

TOPICS = ["apples", "bridges", "clouds", "doors", "engines", "ferns"]
TOPICS += ["gates", "hills", "islands", "jars", "kites", "lamps"]


def rows(word, label=None):
    return [{"prompt": f"{word} {topic}", **({"pair": topic} if label else {})} for topic in TOPICS]


@pytest.fixture
def files(write):
    """Data sections of small files that do not overlap."""
    answers = [{"prompt": f"describe {topic}", "response": "Here it is."} for topic in TOPICS]
    refusals = [{"prompt": f"burn {topic}", "response": "I will not."} for topic in TOPICS]
    return {
        "seemingly_toxic": write("seemingly.jsonl", rows("paint", "s")),
        "toxic": write("toxic.jsonl", rows("wreck", "t")),
        "general": write("general.jsonl", answers),
        "refusals": write("refusals.jsonl", refusals),
    }


def recipe(**fields):
    return Recipe.model_validate(fields)


def test_default_recipe():
    data = load_data(Recipe())
    assert [(benchmark.name, benchmark.wanted) for benchmark in data.benchmarks] == [
        ("builtin-seemingly-toxic", "comply"),
        ("builtin-toxic-twins", "refuse"),
        ("builtin-toxic", "refuse"),
        ("builtin-general", "comply"),
    ]
    assert data.overlaps == []
    summary = data.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary["sets"]) == {
        *("data.seemingly_toxic", "data.toxic", "data.general", "data.refusals", "evaluate.general"),
        *(benchmark.name for benchmark in data.benchmarks),
    }
    for row in summary["sets"].values():
        assert set(row) == {"source", "rows", "sha256", "notes"} and row["rows"] and len(row["sha256"]) == 64
    held_out = {row.prompt for row in data.evaluate_general.rows}
    assert not held_out & {row.prompt for row in data.general.rows}
    assert summary == load_data(Recipe()).summary()


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["refine"], {"data.seemingly_toxic", "data.toxic", "data.general"}),
        (["align"], {"data.general", "data.refusals"}),
        (["evaluate"], {"evaluate.general"}),
    ],
)
def test_only_the_data_that_the_stages_need_are_read(files, stages, expected):
    unread = {name: "no such file.csv" for name in files if f"data.{name}" not in expected}
    data = load_data(recipe(stages=stages, data={**files, **unread}))
    assert {name for name in data.summary()["sets"] if not name.startswith("builtin")} == expected
    assert bool(data.benchmarks) == ("evaluate" in stages)


def test_refine_reads_general_data_even_without_a_retain_term(files):
    """Their drift is measured in any case."""
    data = load_data(recipe(stages=["refine"], refine={"retain_weight": 0}, data=files))
    assert data.general.rows and data.refusals is None


def test_custom_benchmarks(files, write):
    xstest = write("xstest.csv", "prompt,label\nmay I?,safe\nwill you?,unsafe\n")
    prompts = {"source": xstest, "where": {"label": "safe"}}
    benchmarks = [{"name": "xstest", "prompts": prompts, "wanted": "comply"}, "builtin"]
    data = load_data(recipe(data=files, evaluate={"benchmarks": benchmarks}))
    assert [benchmark.name for benchmark in data.benchmarks][:2] == ["xstest", "builtin-seemingly-toxic"]
    assert [row.prompt for row in data.benchmarks[0].prompts.rows] == ["may I?"]


def test_two_benchmarks_with_the_same_name(files, error_of):
    benchmarks = [{"name": "builtin-toxic", "prompts": files["toxic"], "wanted": "refuse"}, "builtin"]
    message = error_of(load_data, recipe(stages=["evaluate"], evaluate={"benchmarks": benchmarks}))
    assert "two benchmarks have the name 'builtin-toxic'" in message


def test_a_prompt_in_both_stage_one_sets(files, write, error_of):
    both = write("both.csv", [*rows("wreck"), {"prompt": "Paint; apples!"}])
    message = error_of(load_data, recipe(data={**files, "toxic": both}))
    assert "1 prompts in common" in message and "seemingly-1 and both-13: 'Paint; apples!'" in message


def test_too_few_rows_to_hold_out_is_an_error_before_training(files, write, error_of):
    few = write("few.csv", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
    assert "data.toxic: 3 rows" in error_of(load_data, recipe(data={**files, "toxic": few}))


def test_matched_batches_without_pairs_are_an_error_before_training(files, write, error_of):
    plain = write("plain.csv", rows("wreck"))
    fields = {"data": {**files, "toxic": plain}, "refine": {"pairs": "matched"}}
    assert "refine.pairs: matched" in error_of(load_data, recipe(**fields))


def leaky(files, write, **fields):
    test = write("test.csv", [{"prompt": "Wreck apples!"}, {"prompt": "sing to me"}, {"prompt": "describe ferns"}])
    benchmarks = [{"name": "mine", "prompts": test, "wanted": "refuse"}]
    return recipe(data=files, evaluate={"benchmarks": benchmarks}, **fields)


def test_leakage_is_an_error_with_the_rows_and_what_to_do(files, write, error_of):
    message = error_of(load_data, leaky(files, write))
    assert "data.toxic and mine: 1 exact" in message and "data.general and mine: 1 exact" in message
    assert "toxic-1 'wreck apples' and test-1 'Wreck apples!'" in message
    assert "--allow_leakage true" in message


def test_allowed_leakage_is_recorded(files, write):
    data = load_data(leaky(files, write, allow_leakage=True))
    assert [overlap.kind for overlap in data.overlaps] == ["exact", "exact"]
    assert data.summary()["overlaps"] == 2


def test_an_earlier_turn_of_a_conversation_leaks_as_well(files, write, error_of):
    turns = ["Wreck apples!", "No.", "and pears?", "No, either."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    refusals = write("refusals.jsonl", [{"id": "dialogue", "messages": messages}])
    test = write("own.csv", [{"prompt": "wreck apples"}, {"prompt": "no"}])
    benchmarks = [{"name": "mine", "prompts": test, "wanted": "refuse"}]
    sets = {**files, "refusals": refusals, "toxic": write("other.csv", rows("spoil"))}
    message = error_of(load_data, recipe(data=sets, evaluate={"benchmarks": benchmarks}))
    assert "data.refusals and mine: 1 exact" in message and "dialogue 'Wreck apples!' and own-1" in message
    in_turns = write("turns.jsonl", [{"prompt": [*messages[:2], messages[2]]}])  # "and pears?", in a conversation
    benchmarks = [{"name": "mine", "prompts": in_turns, "wanted": "refuse"}]
    farewell = [{"role": "user", "content": "Bye!"}, {"role": "assistant", "content": "Bye."}]
    refusals = write("refusals.jsonl", [{"messages": [*messages, *farewell]}])
    assert not load_data(recipe(data=sets | {"refusals": refusals}, evaluate={"benchmarks": benchmarks})).overlaps


def test_measured_general_conversations_must_not_be_trained_on(files, error_of):
    message = error_of(load_data, recipe(data=files, evaluate={"general": files["general"]}))
    assert "data.general and evaluate.general: 12 exact" in message


def test_a_twin_of_a_benchmark_prompt_is_leakage(files, write, error_of):
    twin = write("twin.jsonl", [{"prompt": "something else", "pair": "ferns"}])
    benchmarks = [{"name": "twins", "prompts": twin, "wanted": "refuse"}]
    message = error_of(load_data, recipe(data=files, evaluate={"benchmarks": benchmarks}))
    assert "data.seemingly_toxic and twins: 1 twin" in message and "data.toxic and twins: 1 twin" in message


def test_prompts_of_both_stages_are_counted(files, write):
    refusals = [{"prompt": f"wreck {topic}", "response": "No."} for topic in TOPICS[:5]]
    data = load_data(recipe(data={**files, "refusals": write("r.jsonl", refusals)}))
    assert "5 prompts of data.toxic (stage 1) are also in data.refusals (stage 2)" in data.notes


def test_prompts_that_one_set_answers_and_another_refuses_are_noted(files, write):
    """Only `dcr-ds data check` said so; a run trained on both."""
    refused = [{"prompt": f"Paint {topic}!", "response": "No."} for topic in TOPICS[:3]]
    answered = [{"prompt": f"wreck {topic}", "response": "Like this."} for topic in TOPICS[:2]]
    changed = {"refusals": write("r.jsonl", refused), "general": write("g.jsonl", answered)}
    notes = load_data(recipe(data={**files, **changed})).notes
    assert any(note.startswith("3 prompts are in both data.seemingly_toxic and data.refusals") for note in notes)
    assert any(note.startswith("2 prompts are in both data.toxic and data.general") for note in notes)
    assert not any("in both" in note for note in load_data(recipe(data=files)).notes)


def test_pairs_that_are_written_otherwise_in_the_other_set_are_noted(files, write):
    """pandas writes 1.0 for 1 in a column with missing values; twins were held out apart without a word."""
    twins = write("twins.jsonl", [{"prompt": f"wreck {number}", "pair": f"{number}.0"} for number in range(6)])
    plain = write("plain.jsonl", [{"prompt": f"paint {number}", "pair": number} for number in range(6)])
    data = load_data(recipe(data={**files, "toxic": twins, "seemingly_toxic": plain}))
    assert any("no pair is in both (such as '0' and '0.0')" in note for note in data.notes)


def test_held_out_prompts_that_are_trained_on_in_other_case_are_noted(files, write):
    """Only equal texts are left out as repeats; a question mark more would be measured as an unseen prompt."""
    asked = [{"prompt": text} for topic in TOPICS for text in (f"how do I wreck {topic}", f"How do I wreck {topic}?")]
    given = {**files, "toxic": write("t.jsonl", asked)}
    data = load_data(recipe(stages=["refine"], refine={"pairs": "mixed"}, data=given))
    noted = [note for note in data.notes if "nearly those of rows that stage 1 is trained on" in note]
    assert len(noted) == 1 and noted[0].startswith("4 of 4 held-out prompts of data.toxic")
    paired = [row | {"pair": f"twice {number // 2}"} for number, row in enumerate(asked)]
    kept_together = {**files, "toxic": write("p.jsonl", paired)}
    assert not any("nearly" in note for note in load_data(recipe(stages=["refine"], data=kept_together)).notes)
