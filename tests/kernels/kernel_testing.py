"""What the kernel tests share: batches, one call with its gradient, and the measure of an error."""

import itertools
import random

import torch
from dcr_kernels import circle_loss
from torch import Tensor


def make_batch(num_rows: int, width: int, num_classes: int, dtype=torch.float32, seed: int = 0):
    """Return h [N, D] with a common mean, as hidden states have one, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(num_rows, width, generator=generator) + 0.5 * torch.randn(width, generator=generator)
    if num_classes >= num_rows:
        labels = torch.randperm(num_rows, generator=generator)
    else:
        labels = torch.randint(num_classes, (num_rows,), generator=generator)
    return h.to(dtype), labels


def loss_and_gradient(h: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Call circle_loss on a fresh leaf with the values and strides of h; return both results in float64."""
    h = h.detach().requires_grad_()
    loss = circle_loss(h, labels, **options)
    (gradient,) = torch.autograd.grad(loss, h)
    assert loss.shape == () and gradient.dtype == h.dtype
    return loss.detach().double(), gradient.double()


def truth(h: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The float64 reference on the values of h after their rounding to the dtype of h."""
    return loss_and_gradient(h.double(), labels, **(options | {"backend": "reference"}))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """|value − expected| / |expected| in the Euclidean norm; infinite where 0 was expected and missed."""
    difference, size = (value - expected).norm().item(), expected.norm().item()
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def pairwise(**choices: list) -> list[dict]:
    """Return few cases in which every two values of two parameters meet at least once (chosen greedily)."""
    names = list(choices)
    cases = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices.values())]
    random.Random(0).shuffle(cases)

    def pairs(case: dict) -> set:
        return set(itertools.combinations(case.items(), 2))

    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen
