"""KTO, ORPO and SimPO equal their formulas, and what follows from them."""

import math

import pytest
import torch

from dcr_ds.align.kto import kto_loss
from dcr_ds.align.orpo import odds_loss
from dcr_ds.align.simpo import simpo_loss
from dcr_ds.recipe import KtoSection, OrpoSection, SimpoSection

LOG_P = torch.tensor([[-9.0, -4.0], [-2.0, -30.0]], dtype=torch.float64, requires_grad=True)
LENGTHS = torch.tensor([[3, 2], [4, 10]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_weighs_the_labels_and_has_no_gradient_through_the_kl():
    kto = KtoSection(beta=0.5, desirable_weight=2, undesirable_weight=3)
    reference = torch.tensor([-8.0, -8.0], dtype=torch.float64)
    desirable = torch.tensor([True, False])
    loss, rewards = kto_loss(LOG_P[:, 0], reference, desirable, 0.7, kto)
    r = (-9.0 + 8.0, -2.0 + 8.0)
    assert loss.tolist() == pytest.approx(
        [2 * (1 - sigmoid(0.5 * (r[0] - 0.7))), 3 * (1 - sigmoid(0.5 * (0.7 - r[1])))]
    )
    assert rewards.tolist() == pytest.approx([0.5 * r[0], 0.5 * r[1]])
    (slope,) = torch.autograd.grad(loss.sum(), LOG_P)
    assert slope[0, 0] < 0 < slope[1, 0]  # a desirable answer becomes likelier, an undesirable one less likely


def test_orpo_compares_the_odds_of_length_averaged_probabilities():
    loss, ratio, rewards = odds_loss(LOG_P, LENGTHS, OrpoSection(weight=0.3))
    for row in range(2):
        chosen, rejected = (math.exp(LOG_P[row, side].item() / LENGTHS[row, side].item()) for side in (0, 1))
        expected = math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected))
        assert ratio[row].item() == pytest.approx(expected)
        assert loss[row].item() == pytest.approx(-0.3 * math.log(sigmoid(expected)))
    torch.testing.assert_close(rewards, 0.3 * LOG_P / LENGTHS)


def test_orpo_is_finite_for_an_answer_that_is_certain():
    log_p = torch.tensor([[0.0, -1e-9], [-1e4, 0.0]], requires_grad=True)
    loss, ratio, _ = odds_loss(log_p, torch.ones(2, 2), OrpoSection())
    (slope,) = torch.autograd.grad(loss.sum(), log_p)
    assert loss.isfinite().all() and ratio.isfinite().all() and slope.isfinite().all()


def test_simpo_subtracts_its_margin_from_length_averaged_rewards():
    loss, rewards = simpo_loss(LOG_P, LENGTHS, SimpoSection(beta=2, gamma=0.5))
    torch.testing.assert_close(rewards, 2 * LOG_P / LENGTHS)
    margins = (rewards[:, 0] - rewards[:, 1]).tolist()
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(margin - 0.5)) for margin in margins])
