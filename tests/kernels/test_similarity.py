"""similarity_stats against plain means over all pairs."""

import pytest
import torch
from dcr_kernels import similarity_stats
from kernel_testing import make_batch


def by_pairs(h, labels):
    live = labels >= 0
    h, labels = h[live].double(), labels[live]
    unit = torch.nn.functional.normalize(h)
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None, :]
    return cosine[same & ~torch.eye(len(h), dtype=torch.bool)].mean(), cosine[~same].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 8])
def test_similarity_stats_are_means_over_pairs(dtype, num_classes):
    h, labels = make_batch(70, 40, num_classes, dtype)
    labels[::11] = -1
    h[0] = torch.nan  # dead
    h[1] = 0
    results = similarity_stats(h.requires_grad_(), labels)
    for value, expected in zip(results, by_pairs(h.detach(), labels), strict=True):
        assert value.shape == () and not value.requires_grad
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_cosines_near_zero_keep_their_precision():
    h, labels = torch.randn(2000, 64), torch.arange(2000) % 2
    for value, expected in zip(similarity_stats(h, labels), by_pairs(h, labels), strict=True):
        assert abs(value - expected) <= 1e-9


@pytest.mark.parametrize(
    "labels, has_positive, has_negative",
    [([0, 0, 0], True, False), ([0, 1, 2], False, True), ([0], False, False), ([-1, -1], False, False)],
)
def test_without_pairs_the_result_is_nan(labels, has_positive, has_negative):
    positive, negative = similarity_stats(torch.randn(len(labels), 4), torch.tensor(labels))
    assert positive.isnan() != has_positive
    assert negative.isnan() != has_negative


def test_inputs_are_checked():
    with pytest.raises(ValueError, match=r"labels must have shape \[3\]"):
        similarity_stats(torch.ones(3, 4), torch.zeros(2).long())
