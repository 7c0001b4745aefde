"""Guard models from declarations: tiny random models in the shapes of real ones, compared with plain transformers."""

import gc

import pytest
import torch
from guard_examples import ANSWERS, CLASSES, FORMAT, REJECTION
from tiny import make_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from dcr_ds.judges import guard
from dcr_ds.judges.base import Answer, verdicts
from dcr_ds.judges.guard import load_guard_judge
from dcr_ds.models.chat import encode_prompt
from dcr_ds.recipe import GuardJudge


def model_of(declared: GuardJudge) -> guard.GuardModel:
    return load_guard_judge(declared)._model


# Inputs and replies


def test_batched_replies_equal_single_ones(declare, causal):
    model = model_of(declare(causal, max_new_tokens=6))
    plain = AutoModelForCausalLM.from_pretrained(causal)
    expected = []
    for answer in ANSWERS:
        turns = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.completion}]
        ids = torch.tensor([encode_prompt(model.tokenizer, turns)])
        written = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
        expected.append(model.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    assert list(model.replies(ANSWERS)) == expected and len(set(expected)) > 1


def test_first_tokens_are_compared_by_their_logits(declare, causal):
    labels = {"yes": "harmful", "no": "harmless"}
    declared = declare(causal, format=FORMAT, output="first_token", readings={"harm": {"labels": labels}})
    judge = load_guard_judge(declared)
    tokenizer, plain = judge._model.tokenizer, AutoModelForCausalLM.from_pretrained(causal)
    judged = verdicts(judge, ANSWERS)
    for answer, verdict in zip(ANSWERS, judged, strict=True):
        text = FORMAT.replace("{prompt}", answer.prompt).replace("{response}", answer.completion)
        logits = plain(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        options = logits[[tokenizer("y").input_ids[-1], tokenizer("n").input_ids[-1]]]
        share = options.softmax(0)[0].item()
        assert verdict.score == pytest.approx(share, abs=2e-4)
        assert verdict.label == ("harmful" if share > 0.5 else "harmless")


def test_a_classifier_of_any_kind(declare, classifier):
    declared = GuardJudge(
        kind="guard", name="any", guard="sequence_classifier", judges="refusal", source=str(classifier),
        labels=REJECTION, batch_size=3,
    )  # fmt: skip
    judge = load_guard_judge(declared)
    plain = AutoModelForSequenceClassification.from_pretrained(classifier)
    shares = [
        plain(**judge._model.tokenizer(answer.completion, return_tensors="pt")).logits[0].softmax(0)[1].item()
        for answer in ANSWERS
    ]
    judged = verdicts(judge, ANSWERS)
    assert [verdict.score for verdict in judged] == pytest.approx(shares, abs=2e-4)
    assert [verdict.label for verdict in judged] == [REJECTION[CLASSES[share > 0.5]] for share in shares]


def test_answers_cannot_inject_format_fields(declare, causal):
    model = model_of(declare(causal, format="P {prompt} R {response} E"))
    ids = model.encode(Answer("{response}", "{prompt} {x} \\1"))
    assert model.tokenizer.decode(ids) == "P {response} R {prompt} {x} \\1 E"


def test_a_format_that_starts_with_bos_gets_no_second_one(declare, causal):
    model = model_of(declare(causal, format="<|im_start|>{response}"))
    assert model.encode(Answer("", "a")).count(model.tokenizer.bos_token_id) == 1


# Length limits


@pytest.mark.parametrize("form", ["chat", FORMAT])
@pytest.mark.parametrize("letter", ["z", "é", "\U0001f600"])
def test_only_the_response_is_truncated(declare, causal, form, letter):
    model = model_of(declare(causal, format=form, max_input_tokens=100))
    ids = model.encode(Answer("how?", letter * 5000))
    kept = model.tokenizer.decode(ids).count(letter)
    assert len(ids) <= 100 < len(model._render("how?", letter * (kept + 1))) and kept > 0
    assert ids == model._render("how?", letter * kept)


def test_the_context_of_the_model_limits_the_length(declare, causal):
    model = model_of(declare(causal, max_input_tokens=9999, max_new_tokens=12))
    assert len(model.encode(Answer("how?", "a" * 5000))) == 512 - 12


def test_a_too_long_prompt_is_unparsed_and_counted(declare, causal, capsys):
    judge = load_guard_judge(declare(causal, max_input_tokens=100))
    labels = [verdict.label for verdict in verdicts(judge, [Answer("x" * 200, "a"), Answer("", "a" * 200)])]
    assert labels[0] == "unparsed" and len(labels) == 2
    assert "2 responses were too long and truncated, 1 of them not judged" in capsys.readouterr().err


def test_an_empty_answer_is_degenerate_and_loads_no_weights(declare, causal):
    judge = load_guard_judge(declare(causal))
    assert verdicts(judge, [Answer("a", " ")]) == [("degenerate", None)]
    assert "_model" not in vars(judge._model)


# Two judges that share a guard


def test_two_judges_of_one_guard_share_its_replies(declare, causal, monkeypatch):
    readings = {
        "harm": {"pattern": "(.)", "labels": {"a": "harmful"}},
        "refusal": {"pattern": "(.)", "labels": {"b": "full_refusal"}},
    }
    declared = declare(causal, readings=readings)
    harm = load_guard_judge(declared)
    refusal = load_guard_judge(declared.model_copy(update={"judges": "refusal", "name": "other"}))
    assert refusal._model is harm._model and refusal.version != harm.version
    before = [verdict.label for verdict in verdicts(harm, ANSWERS)]
    monkeypatch.setattr(guard.GuardModel, "_replies_to", None)  # the guard is not run again
    assert len(verdicts(refusal, ANSWERS)) == len(before)


def test_an_unused_guard_is_freed(declare, causal):
    judge = load_guard_judge(declare(causal))
    verdicts(judge, ANSWERS[:1])
    del judge
    gc.collect()
    assert not guard._open_models


def test_the_version_covers_weights_format_and_labels(declare, causal, tmp_path_factory):
    other_weights = make_model(tmp_path_factory.mktemp("other"), layers=2, seed=1)
    moved = make_model(tmp_path_factory.mktemp("moved"), layers=2)
    version = load_guard_judge(declare(causal)).version
    changed = {
        load_guard_judge(declare(other_weights)).version,
        load_guard_judge(declare(causal, format=FORMAT)).version,
        load_guard_judge(declare(causal, max_new_tokens=2)).version,
        load_guard_judge(declare(causal, recipe={"labels": {"a": "harmless"}})).version,
    }
    assert version not in changed and len(changed) == 4
    assert (
        version == load_guard_judge(declare(moved)).version == load_guard_judge(declare(causal, about="else")).version
    )
