"""Separation of labels: mean cosines of the pairs of a batch.

Shapes: N live rows of all ranks, D width, K labels.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from .distributed import gather_batch
from .unit import unit_rows, working_dtype


@torch.no_grad()
def similarity_stats(
    h: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean cosine of pairs within a label and of pairs across labels, as 0-dim tensors.

    The positive pairs of all labels are pooled, so a label counts by its number of pairs. A row is no pair
    with itself; rows with a negative label are left out. NaN where there is no such pair. With `group`,
    called by all of its ranks, the pairs are those of the rows of all ranks and all get the same result.

    Memory is O(N·D): with e the unit rows, Σ_{i≠j} s_ij = |Σ e|² − Σ |e|². Over the rows of each label this
    gives the positive pairs, over all rows all pairs, and the difference the negative ones.
    """
    batch = gather_batch(h, labels, group)
    live = batch.labels >= 0
    unit = unit_rows(batch.h[live])
    unit = unit.double()  # the squares are differences of large sums
    _, row_label, label_size = batch.labels[live].unique(return_inverse=True, return_counts=True)
    label_sum = unit.new_zeros(len(label_size), unit.shape[1]).index_add_(0, row_label, unit)  # [K, D]

    own = unit.square().sum()  # |e|² is 1, or 0 for a row without direction
    positive = label_sum.square().sum() - own
    negative = label_sum.sum(dim=0).square().sum() - own - positive
    num_positive = (label_size * (label_size - 1)).sum()
    num_negative = len(unit) * (len(unit) - 1) - num_positive
    dtype = working_dtype(h.dtype)
    mean_positive = torch.where(num_positive > 0, positive / num_positive, math.nan).to(dtype)
    mean_negative = torch.where(num_negative > 0, negative / num_negative, math.nan).to(dtype)
    return mean_positive, mean_negative
