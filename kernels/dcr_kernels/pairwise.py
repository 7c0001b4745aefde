"""From rows to the loss and its gradient: shared by all losses and both fast backends.

Shapes: N rows of all ranks, n of this rank, D width, S statistics, E chosen partners per row (one given positive, or
the hardest positive and negative).
"""

import logging
import os
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import ChunkedPairs
from .distributed import Batch, gather_batch, gather_columns
from .losses import InfoNCE, Loss, Triplet
from .reference import reference_loss
from .unit import inverse_lengths

BACKENDS = ("auto", "reference", "chunked", "triton")
_CHUNK_ELEMENTS = 2**22  # of rows gathered at a time: 16 MiB in float32

_log = logging.getLogger("dcr_kernels")
_logged: set[str] = set()


def contrastive_loss(
    h: Tensor,
    labels: Tensor,
    loss: Loss,
    group: dist.ProcessGroup | None,
    backend: str,
    check_values: bool,
    positives: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the batch of all ranks and the number of its anchors, the rows that have what the loss needs."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    batch = gather_batch(h, labels, group, check_values, positives, isinstance(loss, InfoNCE))
    backend = choose_backend(h, backend)
    with torch.autocast(h.device.type, enabled=False), torch.cuda.device_of(h):
        if backend == "reference":
            return reference_loss(_attach(h, batch), batch.labels, loss, batch.positives)
        wants_gradient = h.requires_grad and torch.is_grad_enabled()
        return PairwiseLoss.apply(h, batch, loss, backend, wants_gradient)


def choose_backend(h: Tensor, backend: str) -> str:
    """Resolve "auto" by device and dtype and log it once; raise if Triton is asked for and cannot run."""
    if backend == "triton":
        if h.dtype == torch.float64:
            raise ValueError("backend triton computes in float32; for a float64 h use chunked or reference")
        if find_spec("triton") is None:
            raise ValueError("backend triton needs the package triton: pip install triton, or backend='chunked'")
        if h.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                "backend triton needs a GPU; on a CPU it only runs in Triton's interpreter, with TRITON_INTERPRET=1 "
                "set before triton is imported. Use backend='chunked'"
            )
    elif backend == "auto":
        on_gpu = h.device.type == "cuda" and h.dtype != torch.float64 and find_spec("triton") is not None
        backend = "triton" if on_gpu else "chunked"
        line = f"contrastive losses on {h.device.type} in {h.dtype}: backend {backend}"
        if line not in _logged:
            _logged.add(line)
            _log.info(line)
    return backend


class PairwiseLoss(torch.autograd.Function):
    """Compute the loss and, if needed, its gradient in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, h: Tensor, batch: Batch, loss: Loss, backend: str, wants_gradient: bool) -> tuple[Tensor, Tensor]:
        dead = batch.labels < 0
        inverse_length = inverse_lengths(batch.h).masked_fill_(dead, 0)  # [N]; a dead row may hold anything
        pairs = _pairs(backend)(batch, inverse_length)
        statistics, chosen = pairs.statistics(loss)  # [S, n] and, for Triplet, [E, n]
        statistics = gather_columns(statistics, batch)
        statistics[: loss.num_bounds].masked_fill_(dead, -torch.inf)  # shares are padded with 0
        if batch.positives is not None and isinstance(loss, InfoNCE):
            chosen = batch.positives[None]
            positive_logit = _given_logit(batch, batch.positives, inverse_length, loss.temperature)
            statistics = torch.cat([positive_logit, statistics])
        elif chosen is not None:
            chosen = gather_columns(chosen, batch)

        with torch.enable_grad():
            statistics.requires_grad_(wants_gradient)
            value, anchors = loss.reduce(statistics)
        ctx.mark_non_differentiable(anchors)
        if not wants_gradient:
            return value, anchors
        (share,) = torch.autograd.grad(value, statistics)  # [S, N]: ∂L/∂statistics
        toward = pairs.toward(loss, loss.coefficients(statistics.detach(), share))  # ∂L/∂e [n, D]
        if chosen is not None and isinstance(loss, (InfoNCE, Triplet)):
            add_chosen(toward, batch, inverse_length, chosen, loss.chosen(share))
        # Data-parallel engines average gradients over ranks; the true gradient is the sum.
        ctx.save_for_backward(pairs.through_length(toward, inverse_length, factor=batch.num_ranks))
        ctx.dtype = h.dtype
        return value.detach(), anchors

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, _):
        (gradient,) = ctx.saved_tensors
        # Scale before rounding: a float16 gradient is only representable after loss scaling.
        return (gradient * upstream).to(ctx.dtype), None, None, None, None


def add_chosen(toward: Tensor, batch: Batch, inverse_length: Tensor, partner: Tensor, weight: Tensor) -> None:
    """Add what pairs of rows i and partner[·, i] with ∂L/∂s = weight[·, i], both [E, N], add to ∂L/∂e of own rows.

    The partners of a row as a target are summed in a fixed order: sorted, then segment by segment, no atomics.
    """
    row = torch.arange(len(batch.h), device=partner.device).expand_as(partner)
    partner = torch.where(weight == 0, row, partner)  # nothing to add, and dead rows must not reach the others
    target, source = (torch.cat(ends).flatten() for ends in ((row, partner), (partner, row)))
    weight = torch.cat([weight, weight]).flatten() * inverse_length[source]
    order = target.argsort(stable=True)
    source, weight = source[order], weight[order, None]
    edges = torch.arange(batch.own.start, batch.own.stop + 1, device=order.device)
    offsets = torch.searchsorted(target[order], edges)
    width = max(1, _CHUNK_ELEMENTS // len(order))
    for start in range(0, toward.shape[1], width):
        columns = slice(start, start + width)
        terms = batch.h[:, columns][source] * weight
        toward[:, columns] += torch.segment_reduce(terms, "sum", offsets=offsets, axis=0, unsafe=True)


def _given_logit(batch: Batch, positives: Tensor, inverse_length: Tensor, temperature: float) -> Tensor:
    """Logits [1, N] of the rows with their given positives, +∞ where there is none."""
    partner = positives.clamp(min=0)
    dot = torch.zeros_like(inverse_length)
    width = max(1, _CHUNK_ELEMENTS // len(partner))
    for start in range(0, batch.h.shape[1], width):
        part = batch.h[:, start : start + width].to(dot.dtype)
        dot += torch.linalg.vecdot(part, part[partner])
    logit = dot * inverse_length * inverse_length[partner] / temperature
    return logit.where(positives >= 0, torch.inf)[None]


def _pairs(backend: str) -> type:
    if backend == "chunked":
        return ChunkedPairs
    from .triton_pairs import TritonPairs  # only here: it imports triton

    return TritonPairs


def _attach(h: Tensor, batch: Batch) -> Tensor:
    """Put the local rows h [n, D], with their history, in their place among the rows of all ranks [N, D]."""
    if batch.group is None:
        return h
    local = h.view_as(h)  # a separate tensor, so that the hook is not left on the caller's
    if local.requires_grad:
        local.register_hook(lambda gradient: gradient * batch.num_ranks)
    return torch.cat([batch.h[: batch.own.start], local, batch.h[batch.own.stop :]])
