"""The logistic regression in the space of the Gram matrix equals the one over features."""

import numpy as np
import pytest
import torch

from dcr_ds.diagnose.probe import fit, held_out_scores, standardised_gram


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("width", [3, 60])
def test_the_fit_minimises_the_penalised_loss_over_features(width, penalty):
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((40, width)), (rng.random(40) < 0.3).astype(int)
    weights = torch.tensor(features.T @ fit(features @ features.T, labels, penalty), requires_grad=True)
    signs = torch.tensor(2.0 * labels - 1)
    share = torch.tensor((40 / (2 * np.bincount(labels)))[labels])
    scores = torch.tensor(features) @ weights
    loss = (share * torch.nn.functional.softplus(-signs * scores)).sum() + penalty / 2 * (weights**2).sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-6


def test_features_of_any_scale_and_offset_give_the_same_gram():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((30, 8))
    gram = standardised_gram(features)
    changed = features * 10.0 ** np.arange(-4, 4) + 5
    np.testing.assert_allclose(standardised_gram(np.c_[changed, np.full(30, 0.1)]), gram, atol=1e-8)
    assert np.trace(gram) / 30 == pytest.approx(1)
    assert not standardised_gram(np.ones((4, 3))).any()


def test_a_held_out_score_does_not_depend_on_its_own_label():
    rng = np.random.default_rng(2)
    gram, labels, folds = standardised_gram(rng.standard_normal((30, 50))), np.array([0, 1] * 15), np.arange(30) // 6
    scores = held_out_scores(gram, labels, folds)
    flipped = np.where(folds == 2, 1 - labels, labels)
    held_out = folds == 2
    np.testing.assert_array_equal(held_out_scores(gram, flipped, folds)[held_out], scores[held_out])
    assert not np.array_equal(held_out_scores(gram, flipped, folds)[~held_out], scores[~held_out])
