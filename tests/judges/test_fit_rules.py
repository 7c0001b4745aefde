"""Fitting `rules`: it depends only on the rows, and changes only weights for which there are labels."""

import json
from pathlib import Path

import pytest

from dcr_ds.errors import UserError
from dcr_ds.judges import Answer, verdicts
from dcr_ds.judges.rules.fit import EXPECTED_PARTIAL, EXPECTED_REFUSAL, fit, main
from dcr_ds.judges.rules.judge import RulesJudge

EXAMPLES = Path(__file__).with_name("judge_examples.jsonl")
PEOPLE = {"compliance": "1_full_compliance", "full_refusal": "2_full_refusal", "partial_refusal": "3_partial_refusal"}


def labelled():
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").split("\n") if line]
    return [(Answer(r["prompt"], r["completion"]), r["label"]) for r in rows if r["label"] in PEOPLE]


def write_labelled(path):
    rows = [
        {"prompt": answer.prompt, "completion": answer.completion, "human_label": PEOPLE[label]}
        for answer, label in labelled()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_same_rows_give_the_same_weights_file(tmp_path):
    file = write_labelled(tmp_path / "people.jsonl")
    outs = [tmp_path / name for name in ("one.json", "other.json")]
    for out in outs:
        assert main([str(file), "--out", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    fitted = json.loads(outs[0].read_text())
    assert (fitted["fitted_on"], fitted["rows"]) == (["people"], len(labelled()))


def test_the_order_of_rows_does_not_matter():
    assert fit(labelled()) == fit(labelled()[::-1])


def test_a_weight_without_evidence_keeps_its_prior():
    rows = [(Answer("How?", "I can't help."), "full_refusal"), (Answer("How?", "Turn the key."), "compliance")]
    weights = fit(rows)
    assert weights["refusal"]["opening:condoles"] == EXPECTED_REFUSAL["opening:condoles"]
    assert weights["partial"]["list_items"] == EXPECTED_PARTIAL["list_items"]


def test_labels_against_the_prior_move_weights():
    turned = [(answer, "compliance" if label == "full_refusal" else "full_refusal") for answer, label in labelled()]
    straight, against = fit(labelled())["refusal"], fit(turned)["refusal"]
    assert against["opening:declines"] < EXPECTED_REFUSAL["opening:declines"] - 1
    assert straight["opening:declines"] > against["opening:declines"]


def test_fitted_weights_reproduce_their_labels():
    weights = fit(labelled())
    judge = RulesJudge(weights["refusal"], weights["partial"])
    judged = verdicts(judge, [answer for answer, _ in labelled()])
    right = sum(verdict.label == label for verdict, (_, label) in zip(judged, labelled(), strict=True))
    assert right >= 0.95 * len(labelled())


def test_other_weights_are_another_version():
    weights = fit(labelled())
    heavier = {**weights["refusal"], "bias": 0.0}
    assert RulesJudge(**weights).version != RulesJudge(heavier, weights["partial"]).version


def test_labels_of_one_kind_are_refused():
    with pytest.raises(UserError, match="both kinds are needed"):
        fit([row for row in labelled() if row[1] == "compliance"])
