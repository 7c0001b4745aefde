"""The Circle loss in memory linear in the batch: the pairs exist only a tile of rows at a time.

Two things make it short. First, with the gap g_ij = 1 − s_ij of a positive pair and g_ij = s_ij of a negative
one (how far the pair is from its optimum), both kinds of logit are the same function of the weight α:

    α = [g + m]₊        logit = γ α (α − 2m)        ∂logit/∂g = γ α        (α is a stop-gradient)

Second, the rows are sorted by label. The partners that share a label with any row of a tile then form one
range of columns (the block); outside of it every pair is negative and needs no mask.

Two passes over the tiles, each of rows of this rank against the rows of all ranks. The first leaves A_i and
B_i per row; the second recomputes the tile and takes the gradient of this rank's rows, as anchors and as
partners. That costs no more multiplications than keeping the tile, because the matrix is symmetric: 2N²D for
the statistics, 2N²D again, 2N²D for the gradient. And ranks only exchange rows and two numbers per row.

Shapes: N live rows of all ranks sorted by label, n of them on this rank, C rows in a tile, K columns in its
block, D width.
"""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .distributed import Batch
from .reference import reduce_rows
from .unit import unit_rows

# A tile of 2 MiB in float32 stays, with its few temporaries, in the cache of a CPU core; a GPU wants larger
# matrix products. Below 128 rows the products lose more than the cache gains.
_CPU_TILE_ELEMENTS = 2**19
_GPU_TILE_ELEMENTS = 2**24
_MIN_TILE_ROWS = 128


class ChunkedCircleLoss(torch.autograd.Function):
    """Compute the loss and, where one is wanted, its gradient in the forward; the backward only scales it."""

    @staticmethod
    def forward(
        ctx,
        h: Tensor,
        batch: Batch,
        margin: float,
        scale: float,
        form: str,
        reduction: str,
        wants_gradient: bool,
    ) -> Tensor:
        live = (batch.labels >= 0).nonzero().squeeze(1)
        order = live[batch.labels[live].argsort(stable=True)]  # sorted row -> row of the batch
        labels = batch.labels[order]
        unit, inverse_length = unit_rows(batch.h[order])  # [N, D], [N]
        own = ((order >= batch.own.start) & (order < batch.own.stop)).nonzero().squeeze(1)
        tiles = list(_tiles(labels, own))

        # [N, 2]: A_i and B_i. A rank fills in its rows; a sum with the zeros of the others is exact.
        statistics = unit.new_zeros(len(order), 2)
        for rows, block in tiles:
            _, logit, same = _pairs(unit, labels, rows, block, margin, scale)
            statistics[rows, 0] = logit[:, block].masked_fill(~same, -math.inf).logsumexp(dim=1)
            logit[:, block].masked_fill_(same, -math.inf)  # now negatives only
            statistics[rows, 1] = logit.logsumexp(dim=1)
        if batch.group is not None:
            dist.all_reduce(statistics, group=batch.group)

        with torch.enable_grad():
            statistics.requires_grad_(wants_gradient)
            loss = reduce_rows(statistics[:, 0], statistics[:, 1], form, reduction)
        if not wants_gradient:
            return loss
        (share,) = torch.autograd.grad(loss, statistics)  # [N, 2]: ∂L/∂A_i and ∂L/∂B_i

        # share · exp(logit − statistic) as one exponential. A share of 0 (an empty set among them, whose
        # statistic is −∞) becomes exp(−∞); the comparison lets a NaN through.
        normaliser = torch.where(share == 0, math.inf, statistics.detach() - share.log())
        positive, negative = normaliser.unbind(dim=1)
        gradient = unit.new_zeros(h.shape)
        for rows, block in tiles:
            weight, logit, same = _pairs(unit, labels, rows, block, margin, scale)
            # Each pair counts twice: with its row as the anchor and with its column as the anchor.
            pull = _softmax(logit, same, block, positive[rows, None], negative[rows, None])
            pull += _softmax(logit, same, block, positive[block], negative)
            pull.mul_(weight).mul_(scale)  # ∂L/∂g
            pull[:, block] = torch.where(same, -pull[:, block], pull[:, block])  # ∂L/∂s
            toward = pull @ unit  # ∂L/∂e [C, D]
            e = unit[rows]
            radial = (toward * e).sum(dim=1, keepdim=True)
            gradient[order[rows] - batch.own.start] = (toward - radial * e) * inverse_length[rows, None]
        # Data-parallel engines average gradients over ranks; the true gradient is the sum.
        ctx.save_for_backward(gradient.mul_(batch.num_ranks))
        ctx.dtype = h.dtype
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        # Scale before rounding: a float16 gradient is only representable after loss scaling.
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None, None


def _tiles(labels: Tensor, own: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Cut this rank's rows `own` into tiles; yield their indices [C] and the block of columns [K].

    `labels` [N] is sorted, so the block runs from where the class of the first row starts to where the class
    of the last row ends.
    """
    _, class_of_row, class_size = labels.unique_consecutive(return_inverse=True, return_counts=True)
    class_end = class_size.cumsum(0)
    first = (class_end - class_size)[class_of_row]
    last = class_end[class_of_row]
    elements = _CPU_TILE_ELEMENTS if labels.device.type == "cpu" else _GPU_TILE_ELEMENTS
    height = max(_MIN_TILE_ROWS, elements // max(1, len(labels)))
    for start in range(0, len(own), height):
        rows = own[start : start + height]
        yield rows, slice(int(first[rows[0]]), int(last[rows[-1]]))


def _pairs(
    unit: Tensor, labels: Tensor, rows: Tensor, block: slice, margin: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights α and logits [C, N] of a tile, and which pairs of its block share a label [C, K]."""
    gap = unit[rows] @ unit.T
    same = labels[rows, None] == labels[block]
    gap[:, block] = torch.where(same, 1 - gap[:, block], gap[:, block])
    weight = gap.add_(margin).clamp_(min=0)
    logit = (weight - 2 * margin).mul_(weight).mul_(scale)
    logit[torch.arange(len(rows), device=rows.device), rows] = -math.inf  # a row is no partner of itself
    return weight, logit, same


def _softmax(logit: Tensor, same: Tensor, block: slice, positive: Tensor, negative: Tensor) -> Tensor:
    """Return exp(logit − normaliser) [C, N], with the normaliser of the kind of pair each entry is."""
    exponent = logit - negative
    exponent[:, block] = torch.where(same, logit[:, block] - positive, exponent[:, block])
    return exponent.exp_()
