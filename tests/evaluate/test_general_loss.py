import pytest
import torch
from tiny_models import CONVERSATIONS, ONE_RANK, loss_in_child, run_children

from dcr_ds.evaluate import general_loss as module
from dcr_ds.evaluate.general_loss import general_loss, loss_batches
from dcr_ds.models.chat import encode_conversation


@pytest.fixture(scope="module")
def encoded(tiny):
    return [encode_conversation(tiny[1], conversation.messages) for conversation in CONVERSATIONS]


@pytest.fixture(scope="module")
def expected(tiny, encoded):
    """Mean over all supervised tokens and their number, computed row by row with the loss of transformers."""
    total, tokens = 0.0, 0
    for sample in encoded:
        labels = [-100] * sample.prompt_tokens + sample.ids[sample.prompt_tokens :]
        with torch.inference_mode():
            loss = tiny[0](torch.tensor([sample.ids]), labels=torch.tensor([labels])).loss
        total += float(loss) * (len(sample.ids) - sample.prompt_tokens)
        tokens += len(sample.ids) - sample.prompt_tokens
    return total / tokens, tokens


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_loss_is_the_mean_over_all_supervised_tokens_for_any_batching(tiny, encoded, expected, batch_size):
    result = general_loss(tiny[0], encoded, batch_size, ONE_RANK)
    assert result["loss"] == pytest.approx(expected[0], rel=1e-6)
    assert (result["tokens"], result["n"]) == (expected[1], len(encoded))
    assert tiny[0](torch.tensor([[5, 6]])).logits.shape[-1] == tiny[0].config.vocab_size  # the model is unchanged


def test_two_ranks_measure_the_same_loss_as_one(model_folder, expected, tmp_path):
    assert run_children(loss_in_child, 2, model_folder, tmp_path / "out", tmp_path / "r") == [0, 0]
    loss, tokens, n = (tmp_path / "out").read_text().split()
    assert float(loss) == pytest.approx(expected[0], rel=1e-6)
    assert (int(tokens), int(n)) == (expected[1], len(CONVERSATIONS))


def test_batches_are_limited_in_conversations_and_tokens(monkeypatch):
    monkeypatch.setattr(module, "MAX_BATCH_TOKENS", 20)
    lengths = [4, 30, 10, 5, 9, 2, 2, 2]
    batches = loss_batches(lengths, 3)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches == [[1], [2, 4], [3, 0, 5], [6, 7]]
