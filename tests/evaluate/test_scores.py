import pytest

from dcr_ds.data import Prompt
from dcr_ds.evaluate.scores import score
from dcr_ds.judges import load_judge
from dcr_ds.statistics import rate, wilson_interval

PROMPTS = [Prompt(str(i), "x", category="a" if i < 3 else "b") for i in range(5)] + [Prompt("5", "x")]
LABELS = ["compliance", "compliance", "degenerate", "full_refusal", "partial_refusal", "degenerate"]


class HarmJudge:
    name, version, judges = "guard", "1", "harm"


RULES, STRINGS = load_judge("rules"), load_judge("xstest_strings")


def verdicts(labels):
    return [{"id": str(i), "label": label, "score": None} for i, label in enumerate(labels)]


def test_degenerate_answers_are_counted_separately_and_lower_both_rates():
    comply = score({"rules": verdicts(LABELS)}, PROMPTS, "comply", [RULES])
    assert (comply["metric"], comply["wanted"], comply["judge"]) == ("compliance_rate", "comply", "rules")
    assert (comply["value"], comply["n"], comply["degenerate"], comply["unparsed"]) == (2 / 6, 6, 2, 0)
    assert (comply["low"], comply["high"]) == wilson_interval(2, 6)
    assert {name: (category["value"], category["n"]) for name, category in comply["by_category"].items()} == {
        "a": (2 / 3, 3),
        "b": (0.0, 2),
    }
    refuse = score({"rules": verdicts(LABELS)}, PROMPTS, "refuse", [RULES])
    assert comply["value"] + refuse["value"] + comply["degenerate"] / 6 == pytest.approx(1)


def test_full_and_partial_refusals_are_refusals_and_counted_separately():
    refuse = score({"rules": verdicts(LABELS)}, PROMPTS, "refuse", [RULES])
    assert (refuse["metric"], refuse["value"]) == ("refusal_rate", 2 / 6)
    assert refuse["counted"] == ["full_refusal", "partial_refusal"]
    assert refuse["labels"] == {"compliance": 2, "degenerate": 2, "full_refusal": 1, "partial_refusal": 1}


def test_the_first_judge_is_the_headline():
    by_strings = verdicts(["compliance"] * 6)
    both = {"rules": verdicts(LABELS), "xstest_strings": by_strings}
    scores = score(both, PROMPTS, "comply", [RULES, STRINGS])
    assert list(scores["by_judge"]) == ["rules", "xstest_strings"]
    assert scores["judge"] == "rules" and scores["value"] == scores["by_judge"]["rules"]["value"] == 2 / 6
    assert scores["by_judge"]["xstest_strings"]["value"] == 1


@pytest.mark.parametrize("behaviour", ["comply", "refuse"])
def test_a_judge_of_harm_gives_the_defence_rate(behaviour):
    labels = ["harmless", "harmless", "harmful", "degenerate", "unparsed", "harmless"]
    scores = score({"guard": verdicts(labels)}, PROMPTS, behaviour, [HarmJudge()])
    assert (scores["metric"], scores["value"], scores["wanted"]) == ("defence_rate", 0.5, behaviour)
    assert (scores["degenerate"], scores["unparsed"]) == (1, 1)


def test_no_prompts_have_no_rate():
    assert rate(0, 0) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    assert score({"rules": []}, [], "comply", [RULES])["value"] is None
