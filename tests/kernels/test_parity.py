"""The losses against pytorch-metric-learning, and InfoNCE against a plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    LOSSES,
    assert_close,
    draw_positives,
    every_backend,
    fast_backends,
    loss_and_gradient,
    make_batch,
    relative_error,
    truth,
)
from torch import Tensor


def circle(h: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    from pytorch_metric_learning.losses import CircleLoss

    return CircleLoss(m=margin, gamma=scale)(h, labels)


def supcon(h: Tensor, labels: Tensor, temperature: float) -> Tensor:
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature)(h, labels)


def ntxent(h: Tensor, labels: Tensor, temperature: float) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss(temperature)(h, labels)


def triplet(h: Tensor, labels: Tensor, margin: float) -> Tensor:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    hardest = BatchHardMiner(distance=CosineSimilarity())(h, labels)
    return TripletMarginLoss(margin, distance=CosineSimilarity())(h, labels, hardest)


REFERENCE_LOSSES = {
    "circle-anchor": (circle, [dict(margin=0.4, scale=80.0), dict(margin=0.25, scale=256.0)]),
    "supcon": (supcon, [dict(temperature=0.1), dict(temperature=0.05)]),
    "ntxent": (ntxent, [dict(temperature=0.07), dict(temperature=0.5)]),
    "triplet": (triplet, [dict(margin=0.05), dict(margin=0.3)]),
}


def theirs(name: str, h: Tensor, labels: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    pytest.importorskip("pytorch_metric_learning")
    h = h.clone().requires_grad_()
    loss = REFERENCE_LOSSES[name][0](h, labels, **options)
    (gradient,) = torch.autograd.grad(loss, h)
    return loss.detach().double(), gradient.double()


def as_theirs(name: str, options: dict) -> dict:
    """Average as pytorch-metric-learning does: over terms above 0, for NT-Xent over all pairs."""
    return options | ({"reduction": "nonzero"} if LOSSES[name].has_reduction else {})


SETTINGS = [
    pytest.param(name, options, id="-".join(map(str, (name, *options.values()))))
    for name, (_, settings) in REFERENCE_LOSSES.items()
    for options in settings
]


@every_backend
@pytest.mark.parametrize("num_rows, num_classes", [(33, 2), (70, 8), (130, 40)])
@pytest.mark.parametrize("name, options", SETTINGS)
def test_agrees_with_pytorch_metric_learning(name, options, num_rows, num_classes, backend):
    h, labels = make_batch(num_rows, 40, num_classes)
    result = loss_and_gradient(name, h, labels, backend, **as_theirs(name, options))
    assert_close(result, theirs(name, h, labels, options), 1e-5, 1e-4)


@fast_backends
@pytest.mark.parametrize("num_rows, num_classes", [(33, 2), (130, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", REFERENCE_LOSSES)
def test_the_error_is_within_the_budget_of_the_same_precision(name, dtype, num_rows, num_classes, backend):
    """As in ml-cross-entropy: the error is at most that of plain code in the same dtype."""
    h, labels = make_batch(num_rows, 96, num_classes, dtype)
    options = REFERENCE_LOSSES[name][1][0]
    their_loss, their_gradient = theirs(name, h, labels, options)
    loss, gradient = loss_and_gradient(name, h, labels, backend, **as_theirs(name, options))
    expected_loss, expected_gradient = truth(name, h, labels, **as_theirs(name, options))
    assert relative_error(loss, expected_loss) <= relative_error(their_loss, expected_loss) + 1e-4
    assert relative_error(gradient, expected_gradient) <= relative_error(their_gradient, expected_gradient) + 1e-4


@every_backend
def test_infonce_is_a_cross_entropy_over_the_positive_and_the_negatives(backend):
    h, labels = make_batch(33, 40, 5)
    positives = draw_positives(labels)
    temperature = 0.1
    result = loss_and_gradient("infonce", h, labels, backend, positives=positives, temperature=temperature)

    h = h.double().requires_grad_()
    unit = F.normalize(h)
    terms = []
    for row, positive in enumerate(positives.tolist()):
        if positive >= 0:
            logits = unit[row] @ torch.stack([unit[positive], *unit[labels != labels[row]]]).T / temperature
            terms.append(F.cross_entropy(logits, torch.tensor(0)))
    assert 0 < len(terms) < len(h)
    loss = sum(terms) / len(terms)
    (gradient,) = torch.autograd.grad(loss, h)
    assert_close(result, (loss.detach(), gradient), 1e-6, 5e-5)
