"""The built-in data sets: large enough, varied, disjoint, and balanced between the classes."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest

from dcr_ds.data import Prompt, find_overlaps, read_conversations, read_preferences, read_prompts
from dcr_ds.data.leakage import normalise
from dcr_ds.data.records import prompts_of
from dcr_ds.data.shipped import FOLDER, SPLITS
from dcr_ds.judges.base import Answer, verdicts
from dcr_ds.judges.rules.judge import rules_judge
from dcr_ds.recipe import DataSource

CLASSES = ("seemingly_toxic", "toxic")
NAMES = (*CLASSES, "general", "refusals")


def rows(file):
    return [json.loads(line) for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]


PAIRS, GENERAL, REFUSALS = (rows(file) for file in ("pairs.jsonl", "general.jsonl", "refusals.jsonl"))
PREFERENCES = rows("preferences.jsonl")


def test_builtin_sets_have_enough_rows():
    assert len(PAIRS) >= 150 and len({pair["category"] for pair in PAIRS}) >= 10
    assert len(GENERAL) >= 200 and len(REFUSALS) >= 150


def test_rows_have_the_documented_fields():
    for row in PAIRS:
        assert set(row) == {"pair", "category", "trigger", "split", "seemingly_toxic", "toxic"}
    for row in GENERAL + REFUSALS:
        assert set(row) == {"id", "category", "split", "prompt", "response"}
    for row in PAIRS + GENERAL + REFUSALS:
        assert row["split"] in SPLITS
        assert all(value and value == value.strip() for value in row.values())


def test_triggers_are_not_overused():
    worn = {trigger: count for trigger, count in Counter(pair["trigger"] for pair in PAIRS).items() if count > 3}
    assert not worn


def test_both_prompts_of_a_pair_contain_the_trigger():
    missing = [
        (pair["pair"], name)
        for pair in PAIRS
        for name in CLASSES
        if not all(_has_stem(pair[name], word) for word in re.findall(r"\w+", pair["trigger"]))
    ]
    assert not missing


def _has_stem(text, word):
    stem = re.sub(r"(e|y|ing|ed|s)$", "", word.lower())
    return any(part.startswith(stem[: max(3, len(stem) - 1)]) for part in re.findall(r"\w+", text.lower()))


def test_all_prompts_are_disjoint():
    prompts = [pair[name] for pair in PAIRS for name in CLASSES] + [row["prompt"] for row in GENERAL + REFUSALS]
    doubled = [text for text, count in Counter(map(normalise, prompts)).items() if count > 1]
    assert not doubled


def test_keys_and_ids_are_unique():
    for keys in (
        [pair["pair"] for pair in PAIRS],
        [row["id"] for row in GENERAL],
        [row["id"] for row in REFUSALS],
    ):
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("data", [PAIRS, REFUSALS, GENERAL], ids=["pairs", "refusals", "general"])
def test_held_out_rows_include_whole_categories_and_rows_of_others(data):
    splits = {row["category"]: set() for row in data}
    for row in data:
        splits[row["category"]].add(row["split"])
    assert {"held_out"} in splits.values() and {"train", "held_out"} in splits.values()
    held_out = sum(row["split"] == "held_out" for row in data)
    assert 0.1 < held_out / len(data) < 0.4


def test_training_and_held_out_rows_do_not_overlap():
    sides = []
    for split in SPLITS:
        source = DataSource(split=split)
        sides.append({name: read_prompts(source, name).rows for name in NAMES})
    assert find_overlaps(*sides) == []


def test_no_set_is_a_copy_of_another():
    sets = {name: _without_pair(read_prompts(DataSource(split=split), name).rows) for split in SPLITS for name in NAMES}
    for first, second in combinations(sets, 2):
        if {first, second} != set(CLASSES):  # twins are similar on purpose
            assert find_overlaps({first: sets[first]}, {second: sets[second]}) == []


def _without_pair(prompts):
    return [Prompt(row.id, row.prompt) for row in prompts]


def test_length_does_not_predict_the_class():
    lengths = [sum(len(pair[name]) for pair in PAIRS) for name in CLASSES]
    assert max(lengths) / min(lengths) < 1.1
    words = [sum(len(pair[name].split()) for pair in PAIRS) for name in CLASSES]
    assert max(words) / min(words) < 1.1


@pytest.mark.parametrize("split", SPLITS)
def test_readers_give_pairs_with_twins(split):
    first, second = (read_prompts(DataSource(split=split), name).rows for name in CLASSES)
    assert [row.pair for row in first] == [row.pair for row in second]
    assert [row.id for row in first] == [f"{row.pair}/seemingly_toxic" for row in first]
    assert {row.label for row in second} == {"toxic"} and all(row.category for row in second)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["general", "refusals"])
def test_conversations_and_their_prompts(name, split):
    conversations = read_conversations(DataSource(split=split), name)
    prompts = read_prompts(DataSource(split=split), name)
    assert prompts.rows == prompts_of(conversations.rows)
    assert conversations.source == f"builtin ({split})" and conversations.notes == []


def test_category_and_sample_of_a_builtin_set():
    category = PAIRS[0]["category"]
    chosen = read_prompts(DataSource(where={"category": category}), "toxic").rows
    assert chosen and {row.category for row in chosen} == {category}
    drawn = [read_prompts(DataSource(rows=20), name).rows for name in CLASSES]
    assert [row.pair for row in drawn[0]] == [row.pair for row in drawn[1]]


def test_builtin_preferences_have_three_kinds():
    preferences = read_preferences(DataSource())
    assert len(preferences.rows) == len(PREFERENCES) >= 100 and preferences.notes == []
    for row in PREFERENCES:
        assert set(row) == {"id", "kind", "category", "split", "prompt", "chosen", "rejected"}
        assert all(value and value == value.strip() for value in row.values())
    assert min(Counter(row["kind"] for row in PREFERENCES).values()) >= 30
    assert set(Counter(row["kind"] for row in PREFERENCES)) == {"seemingly toxic", "toxic", "general"}


def test_preferences_share_no_prompt_with_another_set():
    ours = {"preferences": _without_pair(prompts_of(read_preferences(DataSource()).rows))}
    others = {f"{name} {split}": read_prompts(DataSource(split=split), name).rows for name in NAMES for split in SPLITS}
    assert find_overlaps(ours, others) == []


def test_the_judge_agrees_with_the_kinds_of_preferences():
    """Chosen answers refuse toxic prompts only, rejected ones seemingly toxic prompts only."""
    judge, agreed = rules_judge(), []
    for answer, refuses in (("chosen", "toxic"), ("rejected", "seemingly toxic")):
        answers = [Answer(row["prompt"], row[answer]) for row in PREFERENCES]
        for row, verdict in zip(PREFERENCES, verdicts(judge, answers), strict=True):
            agreed.append(verdict.label == ("full_refusal" if row["kind"] == refuses else "compliance"))
    assert sum(agreed) / len(agreed) >= 0.97
