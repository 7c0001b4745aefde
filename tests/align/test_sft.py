"""The SFT loss is the cross-entropy of the answer tokens, however they are batched."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.models.chat import encode_conversation
from dcr_ds.models.likelihood import Likelihood, answer_nll

CPU = torch.device("cpu")
TURNS = [
    [("user", "hello"), ("assistant", "hi")],
    [("system", "be kind"), ("user", "a long question, and more of it"), ("assistant", "a longer answer: yes")],
    [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three"), ("assistant", "3")],
    [("user", ""), ("assistant", "!")],
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("model"))).eval()


@pytest.fixture(scope="module")
def model(plain):
    return Likelihood(copy.deepcopy(plain), "chunked")


@pytest.fixture(scope="module")
def samples():
    tokenizer = make_tokenizer()
    messages = [[{"role": role, "content": content} for role, content in turns] for turns in TURNS]
    return [encode_conversation(tokenizer, turns) for turns in messages]


def by_hand(model, sample):
    """−Σ log π(y_t | x, y_<t), summed token by token without padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0].double()
    places = range(sample.prompt_tokens, len(sample.ids))
    return -sum(float(logits[t - 1].log_softmax(0)[sample.ids[t]]) for t in places)


def loss_of(model, samples, alive=None, packed=False):
    return answer_nll(model, samples, alive or [True] * len(samples), packed, CPU, "sum")


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_equals_a_plain_loop(plain, model, samples, packed):
    expected = [by_hand(plain, sample) for sample in samples]
    assert loss_of(model, samples, packed=packed).item() == pytest.approx(sum(expected), rel=1e-5)
    for sample, own in zip(samples, expected, strict=True):
        assert loss_of(model, [sample]).item() == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_loss_on_all_supervises_every_token_but_the_first(plain, model, samples, packed):
    all_supervised = [replace(sample, prompt_tokens=1) for sample in samples]
    expected = sum(by_hand(plain, sample) for sample in all_supervised)
    assert loss_of(model, all_supervised, packed=packed).item() == pytest.approx(expected, rel=1e-5)


def test_only_the_last_answer_of_a_conversation_is_supervised(samples):
    tokenizer = make_tokenizer()
    assert [tokenizer.decode(sample.ids[-sample.num_supervised :]) for sample in samples] == [
        f"{turns[-1][1]}<|im_end|>" for turns in TURNS
    ]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("alive", [[True, False, True, False], [False, True, False, False]])
def test_padding_rows_have_no_weight(plain, model, samples, alive, packed):
    expected = sum(by_hand(plain, sample) for sample, is_alive in zip(samples, alive, strict=True) if is_alive)
    assert loss_of(model, samples, alive, packed).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_padding_rows_has_zero_loss_and_gradient(model, samples):
    loss = loss_of(model, samples[:2], [False, False])
    loss.backward()
    assert loss.item() == 0.0
    assert not any(parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()


def test_padding_tokens_inside_an_answer_are_supervised(plain, model, samples):
    """If EOS is the padding token, the end of the answer is still supervised."""
    ends_alike = [replace(sample, ids=[*sample.ids[:-1], 0]) for sample in samples]
    expected = sum(by_hand(plain, sample) for sample in ends_alike)
    assert loss_of(model, ends_alike).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_add_up_over_micro_batches(model, samples):
    def gradient(groups, packed=False):
        model.zero_grad()
        for group in groups:
            loss_of(model, group, packed=packed).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    expected = gradient([samples])
    assert expected.norm() > 0
    for groups in ([[sample] for sample in samples], [samples[2:], samples[:2]]):
        for packed in (False, True):
            assert (gradient(groups, packed) - expected).norm() <= 1e-5 * expected.norm()
    model.zero_grad()


def test_the_loss_is_summed_in_float32(model, samples, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), dtype=torch.bfloat16).eval()
    loss = loss_of(Likelihood(half, "chunked"), samples)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(model, samples).item(), rel=0.05)
