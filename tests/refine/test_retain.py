"""The retain term is the distance to the original activations, token by token."""

import pytest
import torch
from tiny import make_model

from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.trunk import load_trunk
from dcr_ds.refine.retain import Anchors, drift, relative_distance_squared, retain_loss

CPU = torch.device("cpu")
ONE_RANK = Ranks(0, 1, 0, CPU)
ROWS = [[1, *range(10 + i, 12 + i * 4)] for i in range(5)]
ALL = range(len(ROWS))
ALIVE = [(index, True) for index in ALL]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def original(source):
    return load_trunk(source, 2, torch.float32, "sdpa").eval()


@pytest.fixture
def anchors(original):
    anchors = Anchors()
    anchors.keep(original, ROWS, ALL, False, CPU)
    return anchors


@pytest.fixture
def perturbed(source):
    trunk = load_trunk(source, 2, torch.float32, "sdpa").eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return trunk


def distances(original, perturbed, row):
    """‖h − h₀‖ / ‖h₀‖ per token of a single row, without padding."""
    with torch.no_grad():
        before, after = (trunk(input_ids=torch.tensor([row])).last_hidden_state[0] for trunk in (original, perturbed))
    return [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)]


def test_the_original_model_has_distance_zero(original, anchors):
    assert retain_loss(original, ROWS, ALIVE, anchors, False, CPU).item() == 0.0
    assert drift(original, ROWS, anchors, Batching(5), ONE_RANK) == 0.0
    assert drift(original, ROWS, anchors, Batching(2), ONE_RANK) < 1e-5  # rounding depends on shapes
    assert drift(original, ROWS, anchors, Batching(5, 30), ONE_RANK) < 1e-5


@pytest.mark.parametrize("batching", [Batching(1), Batching(2), Batching(5), Batching(1, 30), Batching(1, 99)])
def test_drift_is_the_mean_distance_of_a_plain_loop(original, perturbed, anchors, batching):
    expected = [distance for row in ROWS for distance in distances(original, perturbed, row)]
    mean = sum(expected) / len(expected)
    assert mean > 0.01
    assert drift(perturbed, ROWS, anchors, batching, ONE_RANK) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_is_the_sum_of_squared_distances(original, perturbed, anchors, packed):
    expected = sum(distance**2 for row in ROWS for distance in distances(original, perturbed, row))
    loss = retain_loss(perturbed, ROWS, ALIVE, anchors, packed, CPU)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    parts = ([3, 0], [4, 1, 2])
    losses = [retain_loss(perturbed, ROWS, [(index, True) for index in part], anchors, packed, CPU) for part in parts]
    assert sum(losses).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_padding_rows_have_no_weight(perturbed, anchors, packed):
    alone = retain_loss(perturbed, ROWS, [(2, True)], anchors, packed, CPU)
    with_dead = retain_loss(perturbed, ROWS, [(2, True), (4, False), (2, False)], anchors, packed, CPU)
    assert with_dead.item() == pytest.approx(alone.item(), rel=1e-5)
    assert retain_loss(perturbed, ROWS, [(1, False), (3, False)], anchors, packed, CPU).item() == 0.0


def test_a_small_gradient_step_reduces_the_loss(perturbed, anchors):
    before = retain_loss(perturbed, ROWS, ALIVE, anchors, False, CPU)
    before.backward()
    with torch.no_grad():
        for parameter in perturbed.parameters():
            if parameter.grad is not None:
                parameter -= 1e-6 * parameter.grad
    assert retain_loss(perturbed, ROWS, ALIVE, anchors, False, CPU) < before


def test_the_distance_is_relative_to_each_token():
    original = torch.tensor([[[3.0, 4.0], [300.0, 400.0]]])
    moved = original * 1.1
    torch.testing.assert_close(relative_distance_squared(moved, original), torch.full((1, 2), 0.01), rtol=1e-4, atol=0)
    assert relative_distance_squared(moved.bfloat16(), original.bfloat16()).dtype == torch.float32


def test_anchors_are_returned_in_the_given_order(original, anchors):
    assert [len(anchors.states[index]) for index in ALL] == [len(row) for row in ROWS]
    expected = torch.cat([anchors.states[index] for index in (4, 0, 2)])
    assert torch.equal(anchors.of([4, 0, 2], CPU), expected)
    with torch.no_grad():
        alone = original(input_ids=torch.tensor([ROWS[4]])).last_hidden_state[0]
    torch.testing.assert_close(expected[: len(ROWS[4])], alone, rtol=1e-4, atol=1e-5)


def test_the_first_anchors_are_kept(perturbed, anchors):
    kept = {index: state.clone() for index, state in anchors.states.items()}
    anchors.keep(perturbed, ROWS, [1, 1, 3], True, CPU)
    assert anchors.states.keys() == kept.keys()
    assert all(torch.equal(anchors.states[index], kept[index]) for index in kept)
