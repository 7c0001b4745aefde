"""The public Circle loss: checks, the batch of all ranks, and the choice of backend."""

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .chunked import ChunkedCircleLoss
from .distributed import Batch, gather_batch
from .reference import circle_loss_reference

_CHOICES = {
    "form": ("anchor", "global"),
    "reduction": ("valid", "nonzero"),
    "backend": ("auto", "reference", "chunked"),
}


def circle_loss(
    h: Tensor,
    labels: Tensor,
    margin: float = 0.25,
    scale: float = 32.0,
    form: Literal["anchor", "global"] = "anchor",
    reduction: Literal["valid", "nonzero"] = "valid",
    group: dist.ProcessGroup | None = None,
    backend: Literal["auto", "reference", "chunked"] = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Pull the rows of one label together and push labels apart: Circle loss on the cosines of raw rows.

    The contrastive refinement of DCR (arXiv 2603.03323) with the Circle loss of Sun et al. (CVPR 2020,
    arXiv 2002.10857). The formulas are in the docstrings of `circle_loss_reference` and `reduce_rows`.

    Args:
        h: [N, D] float32, float64, bfloat16 or float16; pooled hidden states as they come, not normalised.
            Arithmetic is float32 (float64 for float64), under autocast too.
        labels: [N] int64. A negative label marks a dead row: padding that takes no part and gets gradient 0.
        margin: m, in [0, 1).
        scale: γ, above 0.
        form: "anchor", every row is an anchor with its own loss, or "global", one loss over all pairs.
        reduction: what the sum over anchors is divided by, see `reduce_rows`. The global form is one term, so
            either choice leaves it as it is.
        group: ranks whose rows form one batch; called by all of them, shares may differ in size. The value is
            the loss of the whole batch, the same on all ranks. The gradient at h is R · ∂L/∂h with R the size
            of the group, so that an engine which averages parameter gradients over R ranks arrives at the
            true one. None: the local rows are the batch (in torch.distributed None means all ranks).
        backend: "chunked" needs memory O(N·D); "reference" is the readable O(N²) definition, whose backward
            must run outside autocast; "auto" is chunked.
        check_finite: raise ValueError naming the first live row with a NaN or an infinity; costs a device
            synchronisation. Without it such a row makes the loss NaN.

    Returns:
        A scalar in float32 (float64 for float64). Exactly 0 with gradient 0 where no row has both a positive
        and a negative partner ("anchor"), or the batch lacks one kind of pair ("global"). The gradient cannot
        be differentiated again.
    """
    _check_options(margin, scale, form=form, reduction=reduction, backend=backend)
    batch = gather_batch(h, labels, group, check_finite)
    with torch.autocast(h.device.type, enabled=False):
        if backend == "reference":
            rows = _attach(h, batch)
            return circle_loss_reference(rows, batch.labels, margin, scale, form, reduction)
        wants_gradient = h.requires_grad and torch.is_grad_enabled()
        return ChunkedCircleLoss.apply(h, batch, margin, scale, form, reduction, wants_gradient)


def _attach(h: Tensor, batch: Batch) -> Tensor:
    """Put the local rows h [n, D], with their history, in their place among the rows of all ranks [N, D]."""
    if batch.group is None:
        return h
    local = h.view_as(h)  # a tensor of its own: the hook must not stay on the caller's
    if local.requires_grad:
        local.register_hook(lambda gradient: gradient * batch.num_ranks)
    return torch.cat([batch.h[: batch.own.start], local, batch.h[batch.own.stop :]])


def _check_options(margin: float, scale: float, **chosen: str) -> None:
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be in [0, 1), got {margin}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, got {scale}")
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
