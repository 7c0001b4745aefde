"""The confound check finds planted differences, and none in matched twins."""

import math
import random
from types import SimpleNamespace

import pytest

from dcr_ds.data.prompts import read_prompts
from dcr_ds.diagnose import confounds
from dcr_ds.diagnose.confounds import check_confounds
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


def row(text, index=0, pair=None, category=None):
    return SimpleNamespace(id=str(index), prompt=text, pair=pair, category=category)


def sentence(rng, words, length):
    return " ".join(rng.choice(words) for _ in range(length))


def by_name(sets):
    return {confound.name: confound for confound in check_confounds(*sets)}


def warned(figures):
    return {name for name, confound in figures.items() if confound.warning}


def test_length_as_the_only_difference():
    rng = random.Random(0)
    sets = [[row(sentence(rng, WORDS, rng.randint(*span))) for _ in range(60)] for span in ((6, 12), (10, 18))]
    figures = by_name(sets)
    assert {"characters", "words"} <= warned(figures)
    assert figures["words"].auc.value > 0.9
    assert figures["punctuation"].auc.value == 0.5
    assert "'words' alone separates" in figures["words"].warning


def test_vocabulary_as_the_only_difference():
    rng = random.Random(1)
    sets = [[row(sentence(rng, words, 8)) for _ in range(60)] for words in (WORDS[:80], WORDS[45:])]
    figures = by_name(sets)
    assert warned(figures) == {"bag of words"}
    assert figures["bag of words"].auc.value > 0.9


def test_punctuation_as_the_only_difference():
    rng = random.Random(2)
    sets = [[row(sentence(rng, WORDS, 8) + rng.choice(ends)) for _ in range(60)] for ends in ("????.", "....?")]
    figures = by_name(sets)
    assert warned(figures) == {"punctuation"}


def test_matched_twins_without_a_confound():
    rng = random.Random(3)
    texts = [(sentence(rng, WORDS, rng.randint(5, 15)), rng.sample(WORDS, 2), f"set{i % 4}") for i in range(100)]
    sets = [
        [row(f"{text} {ends[side]}?", f"{i}/{side}", str(i), source) for i, (text, ends, source) in enumerate(texts)]
        for side in (0, 1)
    ]
    figures = by_name(sets)
    assert not warned(figures)
    assert set(figures) == {"characters", "words", "punctuation", "bag of words", "source", "other sources"}
    assert figures["source"].auc.value == 0.5
    for confound in figures.values():
        assert confound.auc.low - 0.05 <= 0.5 <= confound.auc.high + 0.05


def sources_with_words(rng, shares):
    """Both sets from three sources with different words; shares[label][source] of 120 prompts."""
    vocabulary = [WORDS[:40], WORDS[40:80], WORDS[80:120]]
    return [
        [
            row(sentence(rng, vocabulary[source], 8), category=f"source {source}")
            for source in rng.choices(range(3), weights, k=120)
        ]
        for weights in shares
    ]


def test_words_of_one_source_do_not_predict_another_source():
    figures = by_name(sources_with_words(random.Random(4), [(8, 1, 1), (1, 8, 1)]))
    assert warned(figures) == {"bag of words", "source"}
    assert figures["other sources"].auc.value == pytest.approx(0.5, abs=0.15)


def test_a_source_with_a_single_set_cannot_be_tested():
    figures = by_name(sources_with_words(random.Random(5), [(1, 0, 0), (0, 1, 1)]))
    assert figures["source"].auc.value > 0.99
    assert math.isnan(figures["other sources"].auc.value)
    assert "no source has prompts of both sets" in figures["other sources"].note
    assert "other sources" not in warned(figures)


def test_a_single_source_is_not_measured():
    rng = random.Random(6)
    sets = [[row(sentence(rng, WORDS, 8), category="all") for _ in range(20)] for _ in range(2)]
    assert "source" not in by_name(sets)


def test_large_sets_are_sampled_with_their_twins():
    rng = random.Random(7)
    sets = [[row(sentence(rng, WORDS, 3), f"{i}/{side}", str(i)) for i in range(700)] for side in (0, 1)]
    samples = [confounds._sample(rows) for rows in sets]
    assert {prompt.pair for prompt in samples[0]} == {prompt.pair for prompt in samples[1]}
    assert len(samples[0]) == 500


def test_too_few_prompts():
    with pytest.raises(UserError, match="data.toxic: 9 prompts are too few"):
        check_confounds([row("a b")] * 10, [row("a b")] * 9)


def test_the_built_in_sets_differ_in_words_not_in_length_or_source():
    sets = [read_prompts(DataSource(), name).rows for name in ("seemingly_toxic", "toxic")]
    figures = by_name(sets)
    assert warned(figures) <= {"bag of words"}
    assert figures["source"].auc.value == pytest.approx(0.5, abs=0.02)
