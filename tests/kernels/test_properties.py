"""Properties of every loss on any batch."""

import pytest
import torch
from kernel_testing import assert_close, call, draw_positives, every_loss, fast_backends, loss_and_gradient, make_batch

pytestmark = [every_loss, fast_backends]
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 2e-5  # another order of the rows changes the order of float32 sums


@pytest.fixture
def batch():
    h, labels = make_batch(70, 40, 6)
    labels[5] = -1
    return h, labels


def test_permuting_the_rows_permutes_the_gradient(batch, name, backend):
    h, labels = batch
    positives = draw_positives(labels)
    loss, gradient = loss_and_gradient(name, h, labels, backend, positives=positives)
    order = torch.randperm(len(h))
    place = order.argsort()
    moved = torch.where(positives >= 0, place[positives], -1)[order]
    permuted = loss_and_gradient(name, h[order], labels[order], backend, positives=moved)
    assert_close(permuted, (loss, gradient[order]), LOSS_TOLERANCE, GRADIENT_TOLERANCE)


def test_the_length_of_a_row_does_not_matter(batch, name, backend):
    h, labels = batch
    expected = loss_and_gradient(name, h, labels, backend)
    length = torch.logspace(-3, 3, len(h))[:, None]
    loss, gradient = loss_and_gradient(name, h * length, labels, backend)
    assert_close((loss, gradient * length), expected, LOSS_TOLERANCE, GRADIENT_TOLERANCE)


def test_the_gradient_is_orthogonal_to_its_row(batch, name, backend):
    h, labels = batch
    _, gradient = loss_and_gradient(name, h, labels, backend)
    radial = (h * gradient).sum(dim=1).abs()
    assert gradient.any()
    assert (radial <= 1e-5 * h.norm(dim=1) * gradient.norm(dim=1)).all()


def test_the_names_of_the_labels_do_not_matter(batch, name, backend):
    h, labels = batch
    expected = loss_and_gradient(name, h, labels, backend)
    names = torch.tensor([7, 2**62, 0, 10**12, 3, 2**40])
    renamed = torch.where(labels >= 0, names[labels], -(2**62))
    result = loss_and_gradient(name, h, renamed, backend)
    assert_close(result, expected, LOSS_TOLERANCE, GRADIENT_TOLERANCE)


def test_a_second_run_is_equal_bit_for_bit(batch, name, backend):
    first, second = (loss_and_gradient(name, *batch, backend) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_descending_the_gradient_separates_the_labels(name, backend):
    h, labels = make_batch(24, 16, 3)
    start = call(name, h, labels, backend="reference")
    for _ in range(12):
        _, gradient = loss_and_gradient(name, h, labels, backend)
        h = h - 0.08 * h.norm() * gradient.float() / gradient.norm().clamp(min=1e-30)  # 0 for solved triplets
    assert call(name, h, labels, backend="reference") < 0.5 * start
