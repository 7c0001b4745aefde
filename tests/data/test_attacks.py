"""Attacked benchmarks: the same prompts, asked in another way."""

from typing import get_args

import pytest
from processes import ROOT

from dcr_ds.data.attacks import attacks, conversation
from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.data.records import Prompt
from dcr_ds.errors import UserError
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.evaluation import AttackName


def names(*benchmarks, **settings):
    return [benchmark.name for benchmark in read_benchmarks(EvaluateSection(benchmarks=list(benchmarks), **settings))]


def test_every_attack_is_declared_documented_and_has_a_source():
    assert set(attacks()) == set(get_args(AttackName))
    document = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for name, attack in attacks().items():
        assert f"| `{name}` |" in document and "arXiv" in attack.source
        assert (attack.template != "{prompt}") != bool(attack.opening)  # the prompt or the answer is changed


@pytest.mark.parametrize("name", attacks())
def test_an_attack_changes_the_last_message_only(name):
    turns = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"})
    prompt = Prompt("1", "break {the} lock", context=turns)
    *earlier, last = conversation(prompt, attacks()[name])
    assert tuple(earlier) == turns and last["role"] == "user" and "break {the} lock" in last["content"]
    assert conversation(prompt, None) == prompt.messages


def test_attacks_apply_to_harmful_benchmarks_or_to_the_one_that_names_them():
    harmful = ["builtin-toxic-twins", "builtin-toxic"]
    plain = ["builtin-seemingly-toxic", *harmful, "builtin-general"]
    attacked = [f"{name}+{attack}" for name in harmful for attack in ("prefill", "language")]
    assert names("builtin", attacks=["prefill", "language"]) == plain + attacked
    assert names("builtin+prefill") == [f"{name}+prefill" for name in harmful]
    both = names("builtin-toxic", "builtin-toxic+prefill", attacks=["prefill", "suppression"])
    assert both == ["builtin-toxic", "builtin-toxic+prefill", "builtin-toxic+suppression"]


def test_own_benchmarks_are_attacked_too(tmp_path):
    (tmp_path / "own.csv").write_text("prompt\nbreak the lock\n")
    own = {"name": "own", "wanted": "refuse", "prompts": str(tmp_path / "own.csv")}
    assert names(own, attacks=["role_play"]) == ["own", "own+role_play"]


def test_attacked_prompts_keep_ids_and_texts():
    settings = EvaluateSection(benchmarks=["builtin-toxic", {"name": "builtin-toxic+suppression", "rows": 5}])
    plain, attacked = read_benchmarks(settings)
    assert (attacked.attacked, attacked.wanted, len(attacked.prompts.rows)) == ("builtin-toxic", "refuse", 5)
    by_id = {row.id: row for row in plain.prompts.rows}
    for row in attacked.prompts.rows:
        assert by_id[row.id] == row
        assert attacked.messages(row)[-1]["content"] != row.prompt == plain.messages(row)[-1]["content"]


@pytest.mark.parametrize(
    ("benchmarks", "given", "words"),
    [
        (["builtin-toxic+magic"], [], "unknown attack 'magic'; attacks: prefill"),
        (["builtin-general+prefill"], [], "builtin-general has harmless prompts"),
        (["nothing+prefill"], [], "unknown benchmark or suite 'nothing'"),
        (["builtin-general"], ["prefill"], "none of the benchmarks has harmful prompts"),
    ],
)
def test_what_cannot_be_attacked_is_named(benchmarks, given, words):
    with pytest.raises(UserError) as error:
        names(*benchmarks, attacks=given)
    assert words in str(error.value)
