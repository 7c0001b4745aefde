"""Linear support vector machine through the origin, solved exactly in the space of the Gram matrix."""

import torch

MAX_STEPS = 100
TOLERANCE = 1e-12


def svm_direction(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """w [D] that minimises ½‖w‖² + Σ max(0, 1 − y ⟨w, x⟩)², in float64.

    Newton's method on the primal problem (Chapelle 2007): with the rows S inside the margin, w = Σ_S β_i x_i and
    (K_S + I/2) β_S = y_S. The objective is convex and piecewise quadratic, so that this ends after a few steps.

    Args:
        features: x [n, D].
        labels: y [n] of −1 and 1.
    """
    features, labels = features.double(), labels.double()
    gram = features @ features.T

    def objective(dual: torch.Tensor) -> torch.Tensor:
        scores = gram @ dual
        return dual @ scores / 2 + (1 - labels * scores).clamp_min(0).square().sum()

    dual = torch.zeros_like(labels)
    for _ in range(MAX_STEPS):
        inside = labels * (gram @ dual) < 1
        target = torch.zeros_like(dual)
        system = gram[inside][:, inside] + torch.eye(int(inside.sum()), dtype=gram.dtype) / 2
        target[inside] = torch.linalg.solve(system, labels[inside])
        step, length, value = target - dual, 1.0, objective(dual)
        while objective(dual + length * step) > value and length > TOLERANCE:
            length /= 2
        dual = dual + length * step
        if step.abs().max() <= TOLERANCE * (1 + dual.abs().max()):
            break
    return features.T @ dual
