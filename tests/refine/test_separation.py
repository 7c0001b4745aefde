"""Separation of held-out prompts: values computed by hand, and no bias by chance or twins."""

import math
import statistics

import pytest
import torch

from dcr_ds.refine.separation import class_mean_auc, separation


def apart(n, width=8, distance=3.0, seed=0):
    """n prompts per class around two distant points, without twins."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.zeros(width)
    centre[0] = distance
    h = torch.cat([torch.randn(n, width, generator=generator) * 0.3 + sign * centre for sign in (1, -1)])
    return h, torch.tensor([0] * n + [1] * n), torch.arange(2 * n)


def mean_cosine(rows, others):
    """The mean over couples of different prompts."""
    couples = [(a, b) for a in rows for b in others if a is not b]
    return sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in couples) / len(couples)


def test_gap_computed_by_hand():
    h = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    figures = separation(h, torch.tensor([0, 0, 1, 1]), torch.arange(4))
    assert figures == pytest.approx({"gap": 1.0, "auc": 1.0, "within": 1.0, "across": 0.0})


def test_separation_equals_means_over_couples():
    h, labels, pairs = apart(5, distance=0.5)
    h, labels, pairs = h[:8], labels[:8], pairs[:8]  # classes of 5 and 3
    figures = separation(h, labels, pairs)
    first, second = list(h[:5]), list(h[5:])
    within = (mean_cosine(first, first) + mean_cosine(second, second)) / 2
    across = mean_cosine(first, second)
    assert figures["within"] == pytest.approx(within, abs=1e-6)
    assert figures["across"] == pytest.approx(across, abs=1e-6)
    assert figures["gap"] == pytest.approx(within - across, abs=1e-6)


def test_a_larger_class_has_no_more_weight():
    small, labels, _ = apart(6, distance=0.5)
    many = torch.cat([small[:6].repeat(5, 1), small[6:]])
    figures = separation(many, torch.tensor([0] * 30 + [1] * 6), torch.arange(36))
    first, second = list(many[:30]), list(many[30:])
    assert figures["within"] == pytest.approx((mean_cosine(first, first) + mean_cosine(second, second)) / 2, abs=1e-6)


def test_separable_sets_have_auc_1_and_identical_ones_half():
    assert separation(*apart(6))["auc"] == 1.0
    h, labels, pairs = apart(6)
    assert class_mean_auc(torch.ones_like(h), labels, pairs) == 0.5


def test_separation_does_not_depend_on_rotation_lengths_or_order():
    h, labels, pairs = apart(6, distance=0.4, seed=3)
    figures = separation(h, labels, pairs)
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    lengths = torch.rand(12, 1, generator=generator) * 10 + 0.1
    order = torch.randperm(12, generator=generator)
    changed = separation((h @ rotation * lengths)[order], labels[order], pairs[order])
    assert changed == pytest.approx(figures, abs=1e-5)


def test_the_classes_may_be_swapped():
    h, labels, pairs = apart(6, distance=0.2, seed=4)
    assert separation(h, 1 - labels, pairs) == pytest.approx(separation(h, labels, pairs), abs=1e-6)


def test_shuffled_labels_have_auc_near_half():
    generator = torch.Generator().manual_seed(0)
    aucs = []
    for _ in range(60):
        h = torch.randn(14, 6, generator=generator)
        labels = (torch.randperm(14, generator=generator) < 7).long()
        aucs.append(class_mean_auc(h, labels, torch.arange(14)))
    assert abs(statistics.mean(aucs) - 0.5) < 4 * statistics.stdev(aucs) / math.sqrt(len(aucs)) < 0.2


def test_twins_that_differ_by_chance_have_auc_near_half():
    """Twins are close together, so that class means that include them would favour the wrong class."""
    generator = torch.Generator().manual_seed(0)
    aucs = []
    for _ in range(60):
        topics = torch.randn(7, 6, generator=generator).repeat_interleave(2, 0)
        h = topics + 0.05 * torch.randn(14, 6, generator=generator)
        aucs.append(class_mean_auc(h, torch.tensor([0, 1] * 7), torch.arange(7).repeat_interleave(2)))
    assert abs(statistics.mean(aucs) - 0.5) < 4 * statistics.stdev(aucs) / math.sqrt(len(aucs)) < 0.2


def test_a_common_direction_of_twins_is_found():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 8)
    h = torch.randn(8, 16, generator=generator).repeat_interleave(2, 0)
    h[:, 0] += 4.0 * labels
    assert class_mean_auc(h, labels, torch.arange(8).repeat_interleave(2)) > 0.9


def test_without_other_pairs_the_auc_is_nan():
    assert math.isnan(class_mean_auc(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 0])))
