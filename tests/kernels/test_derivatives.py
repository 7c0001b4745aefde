"""Gradients against numerical derivatives in float64; Circle loss with its weights as constants."""

import pytest
import torch
from kernel_testing import LOSSES, call, make_batch
from torch.autograd import gradcheck

pytestmark = pytest.mark.parametrize("backend", ["reference", "chunked"])  # those that compute in float64

MARGIN, SCALE = 0.25, 8.0


@pytest.fixture
def batch():
    h, labels = make_batch(9, 4, 3, torch.float64)
    labels[4] = -1
    return h.requires_grad_(), labels


@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("circle")])
def test_gradient_is_the_derivative_of_the_loss(batch, name, reduction, backend):
    h, labels = batch
    options = {"reduction": reduction} if LOSSES[name].has_reduction else {}
    assert call(name, h, labels, backend=backend, **options) > 0.1
    assert gradcheck(lambda h: call(name, h, labels, backend=backend, **options), h)


def test_a_row_may_be_the_positive_of_many(batch, backend):
    h, _ = batch
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, -1])
    positives = torch.tensor([1, 0, 0, 0, 0, 6, 5, -1, -1])
    assert gradcheck(lambda h: call("infonce", h, labels, positives, backend=backend), h)


@pytest.mark.parametrize("form", ["anchor", "global"])
def test_circle_loss_detaches_its_weights(batch, form, backend):
    """The gradient is that of a surrogate with constant weights, which differs from the derivative of the value."""
    h, labels = batch
    with torch.no_grad():
        frozen = cosines(h)
    same = labels[:, None] == labels[None, :]
    live = (labels >= 0)[:, None] & (labels >= 0)[None, :] & ~torch.eye(len(h), dtype=torch.bool)
    weight = torch.where(same, 1 + MARGIN - frozen, frozen + MARGIN).clamp(min=0)

    def surrogate(h):
        s = cosines(h)
        pair = (SCALE * weight * torch.where(same, (1 - MARGIN) - s, s - MARGIN)).exp()
        positive, negative = ((pair * (live & kind)).sum(dim=1) for kind in (same, ~same))
        if form == "global":
            return torch.log1p(positive.sum() * negative.sum() / 4)
        terms = torch.log1p(positive * negative)
        return terms.sum() / terms.count_nonzero()

    def loss(h):
        return call(f"circle-{form}", h, labels, margin=MARGIN, scale=SCALE, backend=backend)

    def value_of_surrogate_gradient_of_loss(h):
        ours = loss(h)
        return surrogate(h).detach() + (ours - ours.detach())

    assert torch.allclose(surrogate(h), loss(h), rtol=1e-12)
    assert gradcheck(value_of_surrogate_gradient_of_loss, h)
    assert not gradcheck(loss, h, raise_exception=False)


def cosines(h):
    return torch.cosine_similarity(h[:, None], h[None, :], dim=-1)
