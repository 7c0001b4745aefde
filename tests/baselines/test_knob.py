"""The knob does exactly its formula: in generation, in the log-odds and in the loss on general answers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hooked_models import fast_answers, load, make_prompts, openings, slow_answer, tiny_source, write_hook
from tiny_models import ONE_RANK

from dcr_ds.diagnose.log_odds import log_odds_after_answers, refusal_log_odds
from dcr_ds.discernment import raised_log_odds
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.models.chat import Encoded
from dcr_ds.models.hooks.context import answering

RAISED = [7, 20, 21]  # the first tokens of `openings()`
NAMES = list("abcdef")


# gemma2 caps its logits; its eager attention has no float64
KINDS = {"llama": (torch.float64, "sdpa", 1e-6), "gemma2": (torch.float32, "eager", 2e-5)}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def near(kind):
    return partial(pytest.approx, abs=KINDS[kind][2])


@pytest.fixture(scope="module")
def models(kind, tmp_path_factory):
    """A function from a strength to the plain model and the one with the knob."""
    folder = tmp_path_factory.mktemp(kind)
    source = tiny_source(folder / "model", kind, layers=2)
    dtype, attention, _ = KINDS[kind]

    def of(strength):
        settings = {"strength": strength, "tokens": RAISED, "texts": ["a", "b", "c"]}
        hook = write_hook(folder / f"knob{strength}", source, "knob", settings)
        return load(source, None, dtype, attention), load(source, hook, dtype, attention)

    return of


@pytest.mark.parametrize("strength", [-3.0, 1.5])
def test_log_odds_follow_the_formula(models, near, strength):
    """log R + c − log(1 − P + O eᶜ), which `raised_log_odds` computes; the odds of the first tokens move by c."""
    plain, hooked = models(strength)
    prompts = make_prompts()
    before, after = (refusal_log_odds(model, NAMES, prompts, openings(), 4) for model in (plain, hooked))
    for old, new in zip(before, after, strict=True):
        refusals, first = (1 / (1 + math.exp(-old[name])) for name in ("log_odds", "first_token"))
        others = (first - refusals) * math.exp(strength)
        assert new["log_odds"] == near(math.log(refusals) + strength - math.log(1 - first + others))
        values = (np.array([old[name]]) for name in ("log_odds", "first_token"))
        assert raised_log_odds(*values, strength) == near(np.array([new["log_odds"]]))
        assert new["first_token"] - old["first_token"] == near(strength)


def test_log_odds_move_by_the_constant_where_no_other_answer_begins_alike(models, near):
    plain, hooked = models(1.5)
    prompts, single = make_prompts(), openings(((7,), (20,), (21,)))
    before, after = (refusal_log_odds(model, NAMES, prompts, single) for model in (plain, hooked))
    for old, new in zip(before, after, strict=True):
        assert new["log_odds"] - old["log_odds"] == near(1.5)
        assert new["margin"] - old["margin"] == near(1.5)


def raised(model, prompt, strength, ids):
    """The next logits of a model, with the constant where the answer begins."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    logits[RAISED] += strength if len(ids) == len(prompt) else 0.0
    return logits


@pytest.mark.parametrize("strength", [-3.0, 4.0])
def test_generation_changes_the_first_token_only(models, near, strength):
    """Against generation token by token without a cache; the log-odds read from the cache are those of the model."""
    plain, hooked = models(strength)
    prompts = make_prompts()
    with answering(hooked, prompts):
        answers, logits, cache = fast_answers(hooked, prompts, 4)
    for prompt, answer, seen in zip(prompts, answers, logits, strict=True):
        expected, expected_logits = slow_answer(partial(raised, plain, prompt, strength), prompt, 4)
        assert answer == expected
        assert seen.flatten().tolist() == near(expected_logits.flatten().tolist())
    rows = log_odds_after_answers(hooked, NAMES, prompts, openings(), cache)
    if rows is not None:  # a sliding window does not hold the prompts
        for row, read in zip(rows, refusal_log_odds(hooked, NAMES, prompts, openings()), strict=True):
            assert row["log_odds"] == near(read["log_odds"])


def test_general_loss_is_that_of_the_raised_logits(models):
    plain, hooked = models(4.0)
    answers = ([7, 9], [5], [21, 4, 6])
    rows = [Encoded([*prompt, *answer], len(prompt)) for prompt, answer in zip(make_prompts(3), answers, strict=True)]
    total = 0.0
    for row in rows:
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_tokens - 1 : -1]
        logits[0, RAISED] += 4.0
        targets = torch.tensor(row.ids[row.prompt_tokens :])
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert general_loss(hooked, rows, 2, ONE_RANK)["loss"] == pytest.approx(total / 6, abs=1e-5)  # float32 sums


def test_the_sum_is_not_rounded_to_16_bits(tmp_path):
    source = tiny_source(tmp_path / "model", layers=2)
    settings = {"strength": 60.03, "tokens": RAISED, "texts": ["a", "b", "c"]}
    hook = write_hook(tmp_path / "knob", source, "knob", settings)
    plain, hooked = (load(source, part, torch.bfloat16) for part in (None, hook))
    (prompt,) = make_prompts(1)
    with torch.no_grad(), answering(hooked, [prompt]):
        seen, base = (model(input_ids=torch.tensor([prompt])).logits[0, -1] for model in (hooked, plain))
    expected = base.float()
    expected[RAISED] += 60.03
    assert torch.equal(seen, expected)
    assert refusal_log_odds(hooked, ["a"], [prompt], openings())


def test_a_hooked_model_is_not_used_without_its_prompts(models):
    _, hooked = models(1.5)
    with pytest.raises(RuntimeError, match="inside `answering`"):
        hooked(input_ids=torch.tensor([[3, 4]]))
