"""Batched embeddings equal those of each prompt alone."""

import pytest
import torch
from tiny import make_model

from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.trunk import load_trunk
from dcr_ds.refine.embed import embed_all, pooled, shards

CPU = torch.device("cpu")
ONE_RANK = Ranks(0, 1, 0, CPU)
ROWS = [[1, 5, 9, 20 + i, *range(40, 40 + i * 3 % 7)] for i in range(11)]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return load_trunk(make_model(tmp_path_factory.mktemp("model")), 2, torch.float32, "sdpa").eval()


def alone(trunk, row):
    with torch.no_grad():
        return trunk(input_ids=torch.tensor([row])).last_hidden_state[0]


@pytest.mark.parametrize("batching", [*map(Batching, [1, 4, 11, 50]), *(Batching(1, n) for n in (10, 25, 500))])
def test_last_is_the_last_token_of_each_prompt(trunk, batching):
    h = embed_all(trunk, ROWS, "last", 3, batching, ONE_RANK)
    expected = torch.stack([alone(trunk, row)[-1] for row in ROWS])
    assert h.dtype == torch.float32 and not h.requires_grad
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batching", [Batching(4), Batching(4, 25)])
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_mean_excludes_the_shared_tokens(trunk, shared, batching):
    h = embed_all(trunk, ROWS, "mean", shared, batching, ONE_RANK)
    expected = torch.stack([alone(trunk, row)[shared:].mean(0) for row in ROWS])
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)


def test_embeddings_are_in_the_order_of_the_rows(trunk):
    h = embed_all(trunk, ROWS, "last", 0, Batching(4), ONE_RANK)
    backwards = embed_all(trunk, ROWS[::-1], "last", 0, Batching(3), ONE_RANK)
    torch.testing.assert_close(backwards.flip(0), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["last", "mean"])
def test_padded_or_packed_the_trunk_has_the_same_gradient(trunk, how):
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    gradients = []
    for packed in (False, True):
        trunk.zero_grad()
        pooled(trunk, ROWS[:3], how, 2, packed, CPU).sin().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
    trunk.zero_grad()
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("batching", [Batching(2), Batching(2, 12)])
@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_shards_of_all_ranks_contain_every_row_once(world_size, batching):
    per_rank = [shards(ROWS, batching, Ranks(rank, world_size, 0, CPU)) for rank in range(world_size)]
    alive = sorted(index for rank in per_rank for shard in rank for index, is_alive in shard if is_alive)
    assert alive == list(range(len(ROWS)))
    assert len({len(rank) for rank in per_rank}) == 1
