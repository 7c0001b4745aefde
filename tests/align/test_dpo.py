"""DPO equals its formula on full logits; the reference is computed once and reused while model and data match."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.align.dpo import preference_loss
from dcr_ds.align.pairs import encode_pairs
from dcr_ds.align.reference import log_probs, reference_key, reference_log_probs
from dcr_ds.data.records import Preference, PreferenceSet
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.errors import UserError
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.recipe import DpoSection, LoraSection, ModelSection
from dcr_ds.recipe.layout import StageFolder

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, CPU)
ROWS = [
    Preference("a", ({"role": "user", "content": "hi"},), "hello to you", "go"),
    Preference("b", ({"role": "system", "content": "be"}, {"role": "user", "content": "1 + 1"}), "2", "three, I say"),
    Preference("c", ({"role": "user", "content": "and?"},), "nothing more, thank you", "nothing at all"),
]


def preferences(rows=ROWS):
    return PreferenceSet("preferences", "here", rows, "")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), layers=2)


@pytest.fixture(scope="module")
def plain(source):
    return AutoModelForCausalLM.from_pretrained(source).eval()


@pytest.fixture
def likelihood(plain):
    return Likelihood(copy.deepcopy(plain), "chunked")


@pytest.fixture(scope="module")
def pairs():
    return encode_pairs(preferences(), 200, make_tokenizer())


def by_hand(model, sample):
    """log π(y|x) of one conversation, computed alone and from all its logits."""
    logits = model(input_ids=torch.tensor([sample.ids])).logits[0]
    places = torch.arange(sample.prompt_tokens, len(sample.ids))
    return logits[places - 1].log_softmax(-1).gather(1, torch.tensor(sample.ids)[places, None]).sum()


@pytest.mark.parametrize("packed", [False, True])
def test_log_probabilities_are_those_of_each_answer_alone(plain, likelihood, pairs, packed):
    with torch.no_grad():
        answers = [pair.both for pair in pairs.samples]
        computed = log_probs(likelihood, answers, [True, False, True], packed, CPU)
        expected = torch.tensor([[by_hand(plain, answer) for answer in pair.both] for pair in pairs.samples])
    expected[1] = 0  # dead
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.3), ("sigmoid_norm", 4.0)])
def test_value_and_gradient_are_those_of_the_formula(plain, likelihood, pairs, loss, beta):
    reference = torch.tensor([[-20.0, -10.0], [-5.0, -31.0], [-44.0, -40.0]])
    lengths = torch.tensor([[answer.num_supervised for answer in pair.both] for pair in pairs.samples])
    log_p = log_probs(likelihood, [pair.both for pair in pairs.samples], [True] * 3, False, CPU)
    value, rewards = preference_loss(log_p, reference, lengths, DpoSection(loss=loss, beta=beta))
    value.mean().backward()

    model = copy.deepcopy(plain)
    expected = torch.zeros(())
    for pair, (of_chosen, of_rejected), (long, short) in zip(pairs.samples, reference, lengths, strict=True):
        chosen, rejected = by_hand(model, pair.chosen) - of_chosen, by_hand(model, pair.rejected) - of_rejected
        margin = chosen / long - rejected / short if loss == "sigmoid_norm" else chosen - rejected
        expected = expected + torch.log(1 + torch.exp(-beta * margin)) / len(pairs.samples)
    expected.backward()
    assert value.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert value.tolist() == pytest.approx((-F.logsigmoid(rewards[:, 0] - rewards[:, 1])).tolist())
    for parameter, reference_parameter in zip(likelihood.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference_parameter.grad, rtol=1e-4, atol=1e-6)


def test_both_conversations_of_a_pair_share_the_prompt(pairs):
    tokenizer = make_tokenizer()
    for pair, row in zip(pairs.samples, ROWS, strict=True):
        prompts = [answer.ids[: answer.prompt_tokens] for answer in pair.both]
        assert prompts[0] == prompts[1]
        answers = [tokenizer.decode(answer.ids[answer.prompt_tokens :]) for answer in pair.both]
        assert answers == [f"{row.chosen}<|im_end|>", f"{row.rejected}<|im_end|>"]


def test_pairs_with_a_too_long_conversation_are_dropped_and_counted(pairs):
    longest = max(max(len(answer.ids) for answer in pair.both) for pair in pairs.samples)
    shorter = encode_pairs(preferences(), longest - 1, make_tokenizer())
    assert shorter.ids == ["a", "c"]
    note = f"data.preferences: 1 of 3 pairs longer than align.max_length = {longest - 1} tokens left out"
    assert note in shorter.notes
    with pytest.raises(UserError, match="no pair has at most align.max_length = 3 tokens"):
        encode_pairs(preferences(), 3, make_tokenizer())


def reference_of(model, pairs, source, folder, **section):
    answers = [pair.both for pair in pairs.samples]
    key = reference_key(answers, ModelSection(**section), source)
    return reference_log_probs(model, answers, Batching(2), StageFolder(folder).reference, key, ALONE)


def test_the_reference_is_reused_while_model_and_data_are_the_same(likelihood, pairs, source, tmp_path, capsys):
    first = reference_of(likelihood, pairs, source, tmp_path)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.mul_(0.5)  # as after training
    assert torch.equal(reference_of(likelihood, pairs, source, tmp_path), first)
    assert str(StageFolder(tmp_path).reference) in capsys.readouterr().err
    others = encode_pairs(preferences(ROWS[:2]), 200, make_tokenizer())
    assert len(reference_of(likelihood, others, source, tmp_path)) == 2
    again = reference_of(likelihood, pairs, source, tmp_path)
    assert not torch.allclose(again, first)
    assert not torch.equal(reference_of(likelihood, pairs, source, tmp_path, dtype="bfloat16"), first)


def test_a_damaged_reference_file_is_computed_again(likelihood, pairs, source, tmp_path):
    first = reference_of(likelihood, pairs, source, tmp_path)
    (StageFolder(tmp_path).reference).write_bytes((StageFolder(tmp_path).reference).read_bytes()[:40])
    assert torch.equal(reference_of(likelihood, pairs, source, tmp_path), first)


def test_the_base_of_a_new_adapter_is_the_reference(plain, likelihood, pairs, source, tmp_path):
    wrapped = Likelihood(add_lora(copy.deepcopy(plain), LoraSection(dropout=0.5), "align.lora").train(), "chunked")
    of_adapter = reference_of(wrapped, pairs, source, tmp_path)
    (StageFolder(tmp_path).reference).unlink()
    assert torch.equal(of_adapter, reference_of(likelihood, pairs, source, tmp_path))
    assert wrapped.training
