"""The load-balancing loss of a step is that of transformers over all its tokens, however they are batched."""

import copy
from functools import cache

import pytest
import torch
from tiny import make_model, make_tokenizer
from tiny_models import ONE_RANK

from dcr_ds.align.balance import RouterBalance
from dcr_ds.align.mix import Mix
from dcr_ds.errors import UserError
from dcr_ds.models.batches import pad_right
from dcr_ds.models.chat import encode_conversation
from dcr_ds.models.experts import ROUTER, resolve_router_loss
from dcr_ds.models.likelihood import Likelihood, answer_nll
from dcr_ds.models.load import load_causal_lm

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_moe", "olmoe", "qwen3_5_moe_text")]
MIXTURES = ["mixtral", "qwen3_moe", "gpt_oss", *SLOW]
COEFFICIENT = 0.25
ANSWERS = ["hi", "a longer answer: yes", "1, 2, 3 and so on", "!", "never mind"]
WHOLE = [[(row, True) for row in range(len(ANSWERS))]]
PARTS = [[(0, True), (1, True)], [(2, True)], [(3, True), (2, False), (4, True)], [(0, False)]]


class Engine(torch.nn.Module):
    """What DeepSpeed's engine is here: a wrapper of the module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def mixture(folder, model_type):
    return load_causal_lm(make_model(folder, model_type, tied=False), torch.float32, "eager", ONE_RANK.device)


@cache
def samples():
    turns = [
        [{"role": "user", "content": "say " * row}, {"role": "assistant", "content": text}]
        for row, text in enumerate(ANSWERS)
    ]
    return Mix([encode_conversation(make_tokenizer(), messages) for messages in turns], [], 0)


def loss_and_gradients(model, passes, packed):
    """The loss of a step without its coefficient, and the gradients of the weighted loss at the routers."""
    data, engine = samples(), Engine(Likelihood(copy.deepcopy(model), "chunked", with_routers=True))
    balance = RouterBalance(engine, data, packed, ONE_RANK, COEFFICIENT)
    value = balance.begin_step(passes)
    for group in passes:
        rows, alive = zip(*group, strict=True)
        answer_nll(engine, [data.samples[row] for row in rows], alive, packed, ONE_RANK.device, "sum")
        balance.share_of(group).backward()
    return value, router_gradients(engine.module.model)


def router_gradients(model):
    gradients = [
        weight.grad.flatten()
        for name, weight in model.named_parameters()
        if ROUTER.search(name) and weight.grad is not None
    ]
    return torch.cat(gradients)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_loss_and_gradient_are_those_of_transformers(tmp_path, model_type):
    model = mixture(tmp_path, model_type)
    ids, mask = pad_right([sample.ids for sample in samples().samples], 0, ONE_RANK.device)
    plain = copy.deepcopy(model)
    expected = plain(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    (COEFFICIENT * expected).backward()
    gradients = router_gradients(plain)
    assert gradients.norm() > 0
    for passes, packed in [(WHOLE, False), (PARTS, False), (PARTS, True)]:
        if packed and "5" in model_type:
            continue  # linear attention cannot be packed
        value, own = loss_and_gradients(model, passes, packed)
        assert value == pytest.approx(expected.item(), abs=1e-6)
        assert (own - gradients).norm() <= 1e-5 * gradients.norm()


def test_the_coefficient_is_that_of_the_model_and_refused_without_routers_that_train(tmp_path):
    config = mixture(tmp_path, "olmoe").config.to_dict()
    assert resolve_router_loss("auto", config, "")[0] == config["router_aux_loss_coef"] > 0
    assert resolve_router_loss("auto", config, "frozen")[0] == resolve_router_loss(0.0, config, "frozen")[0] == 0
    with pytest.raises(UserError, match="align.router_aux_loss_coef: 0.1 cannot be used: frozen"):
        resolve_router_loss(0.1, config, "frozen")
    for model_type in ("llama", "glm4_moe"):
        assert resolve_router_loss("auto", {"model_type": model_type}, "")[0] == 0
        with pytest.raises(UserError, match=f"align.router_aux_loss_coef: 0.1 cannot be used: {model_type} has no"):
            resolve_router_loss(0.1, {"model_type": model_type}, "")
