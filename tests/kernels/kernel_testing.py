"""Helpers of the kernel tests: the losses by name, random batches, calls with gradients, and relative errors."""

import itertools
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from dcr_kernels import (
    CircleLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
    circle_loss,
    infonce_loss,
    ntxent_loss,
    supcon_loss,
    triplet_loss,
)
from torch import Tensor


class Loss(NamedTuple):
    function: Callable
    module: Callable
    options: dict  # always passed
    sharpest: dict  # extreme values that are used in practice
    has_reduction: bool = True  # whether `reduction` changes anything
    takes_positives: bool = False


LOSSES = {
    "circle-anchor": Loss(circle_loss, CircleLoss, {"form": "anchor"}, {"scale": 256.0}),
    "circle-global": Loss(circle_loss, CircleLoss, {"form": "global"}, {"scale": 256.0}, has_reduction=False),
    "supcon": Loss(supcon_loss, SupConLoss, {}, {"temperature": 0.01}),
    "infonce": Loss(infonce_loss, InfoNCELoss, {}, {"temperature": 0.01}, takes_positives=True),
    "ntxent": Loss(ntxent_loss, NTXentLoss, {}, {"temperature": 0.01}, has_reduction=False),
    "triplet": Loss(triplet_loss, TripletLoss, {}, {"margin": 2.0}),
}
FAST_BACKENDS = ["chunked", "triton"]
BACKENDS = ["reference", *FAST_BACKENDS]
TRITON_DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

every_loss = pytest.mark.parametrize("name", LOSSES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
fast_backends = pytest.mark.parametrize("backend", FAST_BACKENDS)


def make_batch(num_rows: int, width: int, num_classes: int, dtype=torch.float32, seed: int = 0):
    """Return labels [N] and h [N, D] with a common mean, as hidden states have."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(num_rows, width, generator=generator) + 0.5 * torch.randn(width, generator=generator)
    if num_classes >= num_rows:
        labels = torch.randperm(num_rows, generator=generator)
    else:
        labels = torch.randint(num_classes, (num_rows,), generator=generator)
    return h.to(dtype), labels


def draw_positives(labels: Tensor, seed: int = 0) -> Tensor:
    """Return for each row another row with its label; −1 if there is none, and for a tenth of the others."""
    draw = random.Random(seed)
    positives = torch.full_like(labels, -1)
    for row, label in enumerate(labels.tolist()):
        others = [other for other in (labels == label).nonzero().flatten().tolist() if other != row]
        if label >= 0 and others and draw.random() > 0.1:
            positives[row] = draw.choice(others)
    return positives


def device_of(backend: str) -> str:
    """The device to test a backend on; skips the test where the backend is not installed."""
    if backend == "triton":
        pytest.importorskip("triton")
        return TRITON_DEVICE
    return "cpu"


def call(name: str, h: Tensor, labels: Tensor, positives: Tensor | None = None, **options) -> Tensor:
    """Call the loss `name` with its own and the given options, and random positives unless they are given."""
    loss = LOSSES[name]
    if loss.takes_positives:
        positives = draw_positives(labels.cpu()) if positives is None else positives
        options["positives"] = positives.to(labels.device)
    return loss.function(h, labels, **loss.options, **options)


def loss_and_gradient(name: str, h: Tensor, labels: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:
    """Call the loss on a fresh leaf with the values and strides of h; return both results in float64 on the CPU."""
    device = device_of(backend)
    h = h.detach().to(device).requires_grad_()
    loss = call(name, h, labels.to(device), backend=backend, **options)
    (gradient,) = torch.autograd.grad(loss, h)
    assert loss.shape == () and gradient.dtype == h.dtype
    return loss.detach().double().cpu(), gradient.double().cpu()


def truth(name: str, h: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The float64 reference on the values of h after their rounding to the dtype of h."""
    return loss_and_gradient(name, h.double(), labels, "reference", **options)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value − expected‖ / ‖expected‖; infinite if only `expected` is 0."""
    value, expected = value.double(), expected.double()
    difference, size = (value - expected).norm().item(), expected.norm().item()
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def assert_close(result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], loss: float, gradient: float):
    """Compare a loss and its gradient with the expected ones in relative error."""
    assert relative_error(result[0], expected[0]) <= loss
    assert relative_error(result[1], expected[1]) <= gradient


def case_id(case: dict) -> str:
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def pairwise(**choices: list) -> list[dict]:
    """Choose few cases (greedily) in which any two values of two parameters occur together at least once."""
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
