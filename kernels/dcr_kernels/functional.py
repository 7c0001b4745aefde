"""The losses as functions. All take raw pooled hidden states and labels, and share `circle_loss`'s last arguments."""

from typing import Literal

import torch.distributed as dist
from torch import Tensor

from .losses import Circle, InfoNCE, NTXent, SupCon, Triplet
from .pairwise import contrastive_loss

Reduction = Literal["valid", "nonzero"]
Backend = Literal["auto", "reference", "chunked", "triton"]


def circle_loss(
    h: Tensor,
    labels: Tensor,
    margin: float = 0.25,
    scale: float = 32.0,
    form: Literal["anchor", "global"] = "anchor",
    reduction: Reduction = "valid",
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
    check_values: bool = False,
) -> Tensor:
    """Pull the rows of one label together and push labels apart: Circle loss on the cosines of raw rows.

    Circle loss of Sun et al. (CVPR 2020, arXiv 2002.10857), as used by the contrastive refinement of DCR
    (arXiv 2603.03323). `Circle` in losses.py has the formulas.

    Args:
        h: [N, D] float32, float64, bfloat16 or float16; pooled hidden states, not normalised.
            Arithmetic is float32 (float64 for float64), under autocast too.
        labels: [N] int64. A negative label marks a dead row: padding that is ignored and gets gradient 0.
        margin: m, in [0, 1).
        scale: γ, above 0, at most 1e6.
        form: "anchor", every row is an anchor with its own loss, or "global", one loss over all pairs.
        reduction: what the sum over anchors is divided by. "valid": the anchors with a positive and a negative
            partner. "nonzero": those of loss above 0, as pytorch-metric-learning does. The global form is one
            term, so this has no effect.
        group: ranks whose rows form one batch; called by all of them, shares may differ in size. The value is
            the loss of the whole batch, the same on all ranks. The gradient at h is R · ∂L/∂h with R the size
            of the group, so that engines which average parameter gradients over R ranks compute the
            true gradient. None: the local rows are the batch (in torch.distributed None means all ranks).
        backend: "chunked" and "triton" need memory O(N·D); "reference" is the readable O(N²) definition, whose
            backward must run outside autocast. "auto" is triton on a GPU where it is installed, else chunked,
            which is logged once under `dcr_kernels`.
        check_values: raise ValueError naming the first live row with a NaN or an infinity, or whose length is
            infinite; costs a device synchronisation. Without it such a row makes the loss NaN.

    Returns:
        A scalar in float32 (float64 for float64). Exactly 0 with gradient 0 where no row has both a positive and a
        negative partner. The gradient cannot be differentiated again.
    """
    loss = Circle(margin, scale, form, reduction)
    return contrastive_loss(h, labels, loss, group, backend, check_values)[0]


def supcon_loss(
    h: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    reduction: Reduction = "valid",
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
    check_values: bool = False,
) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. (NeurIPS 2020, arXiv 2004.11362), on cosines over τ.

    The other arguments, ranks and degenerate batches as in `circle_loss`.
    """
    return contrastive_loss(h, labels, SupCon(temperature, reduction), group, backend, check_values)[0]


def infonce_loss(
    h: Tensor,
    labels: Tensor,
    positives: Tensor,
    temperature: float = 0.1,
    reduction: Reduction = "valid",
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
    check_values: bool = False,
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) with one given positive per row, on cosines over τ.

    The negatives of a row are the rows with another label; the other rows of its label are ignored in its term.

    Args:
        positives: [N] int64, for each row another row of its label, or −1 where it has none. With `group`, rows
            are counted over the shares of all ranks in their order. One that names no such row is an error: on a
            CPU always, on a GPU with `check_values`.

    The other arguments, ranks and degenerate batches as in `circle_loss`.
    """
    loss = InfoNCE(temperature, reduction)
    return contrastive_loss(h, labels, loss, group, backend, check_values, positives)[0]


def ntxent_loss(
    h: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
    check_values: bool = False,
) -> Tensor:
    """NT-Xent (Chen et al., ICML 2020, arXiv 2002.05709) with labels: the mean over all ordered positive pairs.

    The term of a pair sees that pair and the negatives of its anchor, as in pytorch-metric-learning. The other
    arguments, ranks and degenerate batches as in `circle_loss`.
    """
    return contrastive_loss(h, labels, NTXent(temperature), group, backend, check_values)[0]


def triplet_loss(
    h: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    reduction: Reduction = "valid",
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
    check_values: bool = False,
) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., arXiv 1703.07737) on cosines: farthest positive, nearest negative.

    `margin` is in [0, 2]. The other arguments, ranks and degenerate batches as in `circle_loss`.
    """
    return contrastive_loss(h, labels, Triplet(margin, reduction), group, backend, check_values)[0]
