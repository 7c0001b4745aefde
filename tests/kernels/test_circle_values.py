"""The values and gradients of circle_loss: against the definition, pytorch-metric-learning and float64."""

import itertools
import math

import pytest
import torch
from dcr_kernels import circle_loss
from kernel_testing import loss_and_gradient, make_batch, pairwise, relative_error, truth

FORMS = dict(form=["anchor", "global"], reduction=["valid", "nonzero"], scale=[32.0, 80.0])
WIDTHS = [32, 40, 96]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["reference", "chunked"]
SINGLETONS = 10**9  # every row a class of its own

# Batches with both kinds of pairs: each backend in each dtype meets every two values of the rest.
CASES = [
    case | {"dtype": dtype, "backend": backend}
    for dtype, backend in itertools.product(DTYPES, BACKENDS)
    for case in pairwise(num_rows=[33, 70, 130], width=WIDTHS, num_classes=[2, 8], **FORMS)
    + [dict(num_rows=130, width=576, num_classes=2, form="anchor", reduction="valid", scale=256.0)]
]
# Batches that lack one kind, or nearly.
SMALL_CASES = pairwise(
    num_rows=[1, 2, 33, 70],
    num_classes=[1, SINGLETONS],
    width=WIDTHS,
    **FORMS,
    dtype=DTYPES,
    backend=BACKENDS,
)


def name(case) -> str:
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


@pytest.mark.parametrize("case", CASES + SMALL_CASES, ids=name)
def test_agrees_with_the_float64_reference(case):
    options = {key: case[key] for key in ("form", "reduction", "backend", "scale")}
    h, labels = make_batch(case["num_rows"], case["width"], case["num_classes"], case["dtype"])
    loss, gradient = loss_and_gradient(h, labels, **options)
    expected_loss, expected_gradient = truth(h, labels, **options)
    assert expected_loss > 1 if case in CASES else expected_loss == 0
    assert relative_error(loss, expected_loss) <= 1e-6
    # Half precision: the arithmetic is float32, only the gradient returned is rounded.
    tolerance = 5e-5 if case["dtype"] == torch.float32 else 4e-3
    assert relative_error(gradient, expected_gradient) <= tolerance


@pytest.mark.parametrize("form", ["anchor", "global"])
@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
def test_chunked_is_the_reference_in_float64(form, reduction):
    h, labels = make_batch(70, 40, 8, torch.float64)
    labels[::9] = -1
    options = dict(form=form, reduction=reduction, margin=0.4)
    loss, gradient = loss_and_gradient(h, labels, backend="chunked", **options)
    expected_loss, expected_gradient = truth(h, labels, **options)
    assert relative_error(loss, expected_loss) <= 1e-13
    assert relative_error(gradient, expected_gradient) <= 1e-12


def test_many_tiles_agree_with_one(monkeypatch):
    h, labels = make_batch(130, 32, 8)
    one = loss_and_gradient(h, labels, backend="chunked")
    monkeypatch.setattr("dcr_kernels.chunked._MIN_TILE_ROWS", 7)
    monkeypatch.setattr("dcr_kernels.chunked._CPU_TILE_ELEMENTS", 1)
    many = loss_and_gradient(h, labels, backend="chunked")
    assert relative_error(many[0], one[0]) <= 1e-6
    assert relative_error(many[1], one[1]) <= 1e-5


@pytest.mark.parametrize("form", ["anchor", "global"])
def test_reference_is_the_definition_written_pair_by_pair(form):
    margin, scale = 0.25, 8.0
    h, labels = make_batch(9, 5, 3, torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 3])  # row 8 has no positive

    def logit(i, j):
        s = torch.cosine_similarity(h[i], h[j], dim=0).item()
        if labels[i] == labels[j]:
            return -scale * max(1 + margin - s, 0) * (s - (1 - margin))
        return scale * max(s + margin, 0) * (s - margin)

    def softplus_of(pairs):
        positive = sum(math.exp(logit(i, j)) for i, j in pairs if labels[i] == labels[j])
        negative = sum(math.exp(logit(i, j)) for i, j in pairs if labels[i] != labels[j])
        return math.log1p(positive * negative)

    if form == "anchor":
        expected = sum(softplus_of([(i, j) for j in range(9) if j != i]) for i in range(9)) / 8
    else:
        expected = softplus_of([(i, j) for i in range(9) for j in range(i)])
    loss = circle_loss(h, labels, margin, scale, form, backend="reference")
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "num_rows, num_classes, margin, scale", [(33, 2, 0.4, 80), (70, 8, 0.25, 256), (130, 40, 0.25, 32)]
)
def test_agrees_with_pytorch_metric_learning(num_rows, num_classes, margin, scale):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    h, labels = make_batch(num_rows, 40, num_classes)
    theirs = h.clone().requires_grad_()
    their_loss = losses.CircleLoss(m=margin, gamma=scale)(theirs, labels)
    their_loss.backward()
    loss, gradient = loss_and_gradient(h, labels, margin=margin, scale=scale, reduction="nonzero")
    assert relative_error(loss, their_loss.detach().double()) <= 1e-5
    assert relative_error(gradient, theirs.grad.double()) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_within_the_budget_of_the_same_precision(dtype):
    """The budget idea of ml-cross-entropy: never further from the truth than the plain code in that dtype."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    h, labels = make_batch(70, 96, 2, dtype)
    theirs = h.clone().requires_grad_()
    losses.CircleLoss(m=0.25, gamma=80)(theirs, labels).backward()
    options = dict(scale=80, reduction="nonzero")
    _, gradient = loss_and_gradient(h, labels, **options)
    _, expected = truth(h, labels, **options)
    budget = relative_error(theirs.grad.double(), expected)
    assert relative_error(gradient, expected) <= budget + 1e-4


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("form", ["anchor", "global"])
def test_gradient_is_that_of_the_loss_with_frozen_weights(backend, form):
    margin, scale = 0.25, 8.0
    h, labels = make_batch(7, 4, 2, torch.float64)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(7, dtype=torch.bool)

    def cosines(h):
        return torch.cosine_similarity(h[:, None], h[None, :], dim=-1)

    frozen = torch.where(same, 1 + margin - cosines(h), cosines(h) + margin).clamp(min=0)

    def surrogate(h):
        s = cosines(h)
        logit = scale * frozen * torch.where(same, (1 - margin) - s, s - margin)
        row_sums = [(logit.exp() * mask).sum(1) for mask in (positive, ~same)]
        if form == "global":
            return torch.log1p(row_sums[0].sum() * row_sums[1].sum() / 4)
        return torch.log1p(row_sums[0] * row_sums[1]).mean()

    def loss(h):
        return circle_loss(h, labels, margin, scale, form, backend=backend)

    def value_of_surrogate_gradient_of_loss(h):
        ours = loss(h)
        return surrogate(h).detach() + (ours - ours.detach())

    h.requires_grad_()
    assert torch.allclose(surrogate(h), loss(h), rtol=1e-12)
    assert torch.autograd.gradcheck(value_of_surrogate_gradient_of_loss, h)
    # The stop-gradient on the weights: the gradient is not the derivative of the value.
    assert not torch.autograd.gradcheck(loss, h, raise_exception=False)
