"""The definitions in plain PyTorch: N×N memory, gradients by autograd.

Every other backend is tested against these in float64.

Shapes: N rows of the batch, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import Circle, InfoNCE, Loss, NTXent, SupCon, log_sum_exp
from .unit import unit_rows


def reference_loss(h: Tensor, labels: Tensor, loss: Loss, positives: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss of raw rows h [N, D] with labels [N], and its number of anchors.

    Rows with a negative label are dead: they are ignored. `positives` [N] are the given positives of InfoNCE, −1 for
    rows without one.
    """
    live = labels >= 0
    labels = labels[live]
    unit = unit_rows(h[live])
    cosine = unit @ unit.T  # [N, N]
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if positives is not None:
        place = live.cumsum(0) - 1  # row of the batch -> live row
        positives = torch.where(positives >= 0, place[positives.clamp(min=0)], -1)[live]
    return loss.reduce(row_statistics(cosine, positive, ~same, loss, positives))


def row_statistics(cosine: Tensor, positive: Tensor, negative: Tensor, loss: Loss, positives: Tensor | None) -> Tensor:
    """The statistics [S, N] that `loss.reduce` needs, from cosines and masks of positives and negatives, all [N, N]."""
    if isinstance(loss, Circle):
        # sg(·) of the weights is detach(): the gradient of Circle loss holds them constant
        to_positive = (1 + loss.margin - cosine).clamp(min=0).detach()
        to_negative = (cosine + loss.margin).clamp(min=0).detach()
        a = -loss.scale * to_positive * (cosine - (1 - loss.margin))
        b = loss.scale * to_negative * (cosine - loss.margin)
        return torch.stack([_log_sum_exp_where(positive, a), _log_sum_exp_where(negative, b)])
    if isinstance(loss, (SupCon, InfoNCE, NTXent)):
        x = cosine / loss.temperature
        bound = _log_sum_exp_where(negative, x)
        count = positive.sum(dim=1).to(x.dtype)
    if isinstance(loss, SupCon):
        return torch.stack([_log_sum_exp_where(positive, x), bound, x.where(positive, 0).sum(dim=1), count])
    if isinstance(loss, InfoNCE):
        assert positives is not None  # gather_batch refuses InfoNCE without them
        positive_logit = x.gather(1, positives.clamp(min=0)[:, None]).squeeze(1)
        return torch.stack([positive_logit.where(positives >= 0, math.inf), bound])
    if isinstance(loss, NTXent):
        distance = (bound[:, None] - x).where(positive, -math.inf)
        return torch.stack([bound, F.softplus(distance).sum(dim=1), distance.sigmoid().sum(dim=1), count])
    # batch-hard triplets: max, not amax, so that only one of several equal values gets the gradient
    return torch.stack([_max_where(positive, -cosine), _max_where(negative, cosine)])


def _log_sum_exp_where(mask: Tensor, x: Tensor) -> Tensor:
    return log_sum_exp(x.where(mask, -math.inf))


def _max_where(mask: Tensor, x: Tensor) -> Tensor:
    if not len(x):
        return x.sum(dim=1)  # empty, with its history
    return x.where(mask, -math.inf).max(dim=1).values
