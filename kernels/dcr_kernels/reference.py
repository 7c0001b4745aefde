"""The definition of the Circle loss in plain PyTorch: N×N memory, autograd gradient, nothing clever.

Every other backend is tested against this one in float64.

Shapes: N rows of the batch, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .unit import unit_rows


def circle_loss_reference(
    h: Tensor,
    labels: Tensor,
    margin: float,
    scale: float,
    form: str,
    reduction: str,
) -> Tensor:
    """Circle loss of raw rows h [N, D] with labels [N] (Sun et al., Circle Loss, CVPR 2020).

    With s_ij the cosine of rows i and j, P_i the other rows with the label of i, N_i the rows with another
    label, margin m, scale γ, and sg(·) a stop-gradient:

        α_ij = sg([1 + m − s_ij]₊)     a_ij = −γ α_ij (s_ij − (1 − m))     j ∈ P_i
        α_ij = sg([s_ij + m]₊)         b_ij =  γ α_ij (s_ij − m)           j ∈ N_i
        A_i = log Σ_{j∈P_i} exp a_ij   B_i = log Σ_{j∈N_i} exp b_ij        (−∞ over an empty set)

    `reduce_rows` turns (A, B) into the loss. Rows with a negative label are dead: they take no part at all.
    """
    live = labels >= 0
    labels = labels[live]
    unit, _ = unit_rows(h[live])
    cosine = unit @ unit.T  # [N, N]

    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)

    positive_weight = (1 + margin - cosine).clamp(min=0).detach()
    negative_weight = (cosine + margin).clamp(min=0).detach()
    positive_logit = -scale * positive_weight * (cosine - (1 - margin))
    negative_logit = scale * negative_weight * (cosine - margin)

    return reduce_rows(
        _masked_log_sum_exp(positive_logit, positive),
        _masked_log_sum_exp(negative_logit, ~same),
        form,
        reduction,
    )


def reduce_rows(positive: Tensor, negative: Tensor, form: str, reduction: str) -> Tensor:
    """Turn the row statistics A [N] and B [N] into the scalar loss.

    form "anchor", each row in turn being the paper's single sample x:

        L_i = softplus(A_i + B_i), 0 where P_i or N_i is empty
        reduction "valid":   L = Σ L_i / #{i : P_i and N_i not empty}
        reduction "nonzero": L = Σ L_i / #{i : L_i > 0}, pytorch-metric-learning's AvgNonZeroReducer

    form "global", one term over all unordered pairs of the batch, so that there is nothing to average. Every
    pair is seen from both of its ends, hence the ln 2:

        L = softplus((LSE_i A_i − ln 2) + (LSE_i B_i − ln 2)), 0 where either set of pairs is empty
    """
    if form == "global":
        return F.softplus(_log_sum_exp(positive) + _log_sum_exp(negative) - 2 * math.log(2))
    both = positive + negative
    loss = F.softplus(both)  # softplus(−∞) = 0 with gradient 0: an empty set needs no branch
    # "not −∞" rather than "finite": a NaN must reach the loss instead of being counted out.
    counted = loss > 0 if reduction == "nonzero" else both != -math.inf
    return loss.sum() / counted.sum().clamp(min=1)


def _masked_log_sum_exp(logit: Tensor, mask: Tensor) -> Tensor:
    return _log_sum_exp(logit.masked_fill(~mask, -math.inf))


def _log_sum_exp(logit: Tensor) -> Tensor:
    """Log-sum-exp of the last dimension: −∞ with a zero gradient, not NaN, where there is nothing to sum."""
    nothing = (logit == -math.inf).all(dim=-1)
    return logit.masked_fill(nothing[..., None], 0).logsumexp(dim=-1).masked_fill(nothing, -math.inf)
