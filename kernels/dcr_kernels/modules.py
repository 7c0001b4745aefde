"""The losses as modules: `CircleLoss(scale=8.0, group=group)(h, labels)` and the other losses."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .losses import Circle, InfoNCE, Loss, NTXent, SupCon, Triplet
from .pairwise import contrastive_loss


class ContrastiveLoss(nn.Module):
    """A loss with the options of a call, which are those of the functions.

    `degenerate_batches` counts, on the device and without a synchronisation, the calls in training mode whose
    batch had no anchor: their loss and gradient are 0, and a run made of them would learn nothing.
    """

    def __init__(
        self,
        loss: Loss,
        group: dist.ProcessGroup | None = None,
        backend: str = "auto",
        check_values: bool = False,
    ):
        super().__init__()
        self.loss = loss
        self.group, self.backend, self.check_values = group, backend, check_values
        self.degenerate_batches: Tensor
        self.register_buffer("degenerate_batches", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, h: Tensor, labels: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of h [N, D] with labels [N]; only InfoNCE needs `positives` [N]."""
        value, anchors = contrastive_loss(h, labels, self.loss, self.group, self.backend, self.check_values, positives)
        if self.training:
            self.degenerate_batches = self.degenerate_batches.to(anchors.device) + (anchors == 0)
        return value

    def extra_repr(self) -> str:
        return repr(self.loss)


def _module(loss: type[Loss]) -> Callable[..., ContrastiveLoss]:
    def build(*positional, group=None, backend="auto", check_values=False, **named) -> ContrastiveLoss:
        return ContrastiveLoss(loss(*positional, **named), group, backend, check_values)

    build.__name__ = build.__qualname__ = f"{loss.__name__}Loss"
    build.__doc__ = f"`ContrastiveLoss` of `{loss.__name__}`, which takes the first arguments."
    return build


CircleLoss, SupConLoss, InfoNCELoss, NTXentLoss, TripletLoss = map(_module, (Circle, SupCon, InfoNCE, NTXent, Triplet))
