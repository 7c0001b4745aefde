"""Inner products of per-sample gradients, parameter by parameter, without storing the gradients of the whole model.

A sample is one logit of one prompt. M samples, k logits per prompt, T positions. The gradient of a parameter comes
as one of three factors, each for a batch of n prompts:

- `Outer`: a matrix Σ_s b_s a_sᵀ over the positions s, with a the layer's inputs and b the gradients at its outputs.
- `Rows`: a matrix of which only some rows are not zero: Σ_s e_{id_s} v_sᵀ.
- `Vector`: the gradient itself.

Only the upper triangle of the M × M result is filled.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SLICE_BYTES = 256 * 2**20  # gradients of all samples that are materialised at a time
TRIANGLE_ROWS = 128


class Outer(NamedTuple):
    outputs: Tensor  # b [n, k, T, rows of the matrix]
    inputs: Tensor  # a [n, T, columns of the matrix]


class Rows(NamedTuple):
    ids: Tensor  # [n, k, T] row numbers
    vectors: Tensor  # v [n, k, T, columns of the matrix]


class Vector(NamedTuple):
    gradients: Tensor  # [n, k, size]


Factor = Outer | Rows | Vector
Share = tuple[int, int]  # rank, world size


def add_products(gram: Tensor, factors: Sequence[Factor], share: Share) -> None:
    """Add the inner products of the gradients of one parameter to a matrix; per rank, its share of them.

    Args:
        gram: [M, M], in float64; the sum over ranks of its upper triangle is the result.
        factors: of all batches, in the order of the samples.
    """
    outer = [active_positions(factor) for factor in factors if isinstance(factor, Outer)]
    if outer and paired_flop(outer) < materialised_flop(outer):
        add_paired(gram, outer, share)
        return
    rows = [factor for factor in factors if isinstance(factor, Rows)]
    vectors = [factor for factor in factors if isinstance(factor, Vector)]
    slices = outer_slices(outer, share) if outer else row_slices(rows, share) if rows else vector_slices(vectors, share)
    for gradients in slices:
        add_upper(gram, gradients)


def add_upper(gram: Tensor, gradients: Tensor) -> None:
    """gram += J Jᵀ for gradients J [M, P], in the upper triangle."""
    for start in range(0, len(gradients), TRIANGLE_ROWS):
        rows = slice(start, start + TRIANGLE_ROWS)
        gram[rows, start:] += gradients[rows] @ gradients[start:].T


def active_positions(factor: Outer) -> Outer:
    """The factor without positions whose gradients are all zero: padding, and most of the last block."""
    active = (factor.outputs != 0).any(dim=3).any(dim=1)  # [n, T]
    length = max(int(active.sum(dim=1).max()), 1)
    if length == active.shape[1]:
        return factor
    order = active.int().argsort(dim=1, descending=True, stable=True)[:, :length]  # [n, length]
    (n, k, _, height), width = factor.outputs.shape, factor.inputs.shape[2]
    outputs = factor.outputs.gather(2, order[:, None, :, None].expand(n, k, length, height))
    return Outer(outputs, factor.inputs.gather(1, order[:, :, None].expand(n, length, width)))


def paired_flop(factors: Sequence[Outer]) -> float:
    """Cost of `add_paired`."""
    total = 0.0
    for index, left in enumerate(factors):
        n, k, t, height = left.outputs.shape
        for right in factors[index:]:
            m, s, width = right.inputs.shape
            pairs = n * m * (0.5 if right is left else 1)
            total += pairs * 2 * (t * s * (width + k * height) + k * k * t * height)
    return total


def materialised_flop(factors: Sequence[Outer]) -> float:
    """Cost of `outer_slices` and of the products of what they yield."""
    samples = sum(factor.outputs.shape[0] * factor.outputs.shape[1] for factor in factors)
    positions = sum(factor.outputs.shape[:3].numel() for factor in factors)
    size = factors[0].outputs.shape[3] * factors[0].inputs.shape[2]
    return size * (samples * (samples + TRIANGLE_ROWS) + 2 * positions)


def add_paired(gram: Tensor, factors: Sequence[Outer], share: Share) -> None:
    """⟨Σ_s b_s a_sᵀ, Σ_t b'_t a'_tᵀ⟩ = Σ_s b_s · Σ_t (a_s · a'_t) b'_t for all pairs of prompts; batches are shared."""
    rank, world = share
    starts = sample_starts(factors)
    for index in range(rank, len(factors), world):
        left = factors[index]
        for other in range(index, len(factors)):
            for row in range(len(left.inputs)):
                skipped = row if other == index else 0
                right = Outer(*(tensor[skipped:] for tensor in factors[other]))
                products = paired(left.outputs[row], left.inputs[row], right)
                k = len(products)
                top, first = starts[index] + row * k, starts[other] + skipped * k
                gram[top : top + k, first : first + products.shape[1]] += products


def paired(outputs: Tensor, inputs: Tensor, right: Outer) -> Tensor:
    """Products of the samples of one prompt, b [k, T, rows] and a [T, columns], and those of a batch: [k, m · k]."""
    overlap = inputs @ right.inputs.transpose(1, 2)  # [m, T, S]
    mixed = overlap[:, None] @ right.outputs  # [m, k, T, rows]
    return outputs.flatten(1) @ mixed.flatten(2).flatten(0, 1).T


def outer_slices(factors: Sequence[Outer], share: Share) -> Iterator[Tensor]:
    """The gradients of all samples, for some of the matrix's rows at a time."""
    starts = sample_starts(factors)
    height, width = factors[0].outputs.shape[3], factors[0].inputs.shape[2]
    for rows in shared_slices(height, starts[-1] * width * factors[0].inputs.element_size(), share):
        gradients = factors[0].inputs.new_empty(starts[-1], (rows.stop - rows.start) * width)
        for (outputs, inputs), start, end in zip(factors, starts, starts[1:], strict=False):
            n, k, _, _ = outputs.shape
            left = outputs[..., rows].transpose(2, 3).reshape(n, k * (rows.stop - rows.start), -1)
            torch.bmm(left, inputs, out=gradients[start:end].view(n, -1, width))
        yield gradients


def row_slices(factors: Sequence[Rows], share: Share) -> Iterator[Tensor]:
    """The gradients of all samples at the rows that occur, for some of these rows at a time."""
    starts = sample_starts(factors)
    width = factors[0].vectors.shape[3]
    rows_used = torch.cat([factor.ids.flatten() for factor in factors]).unique()
    for rows in shared_slices(len(rows_used), starts[-1] * width * factors[0].vectors.element_size(), share):
        size = rows.stop - rows.start
        gradients = factors[0].vectors.new_zeros(starts[-1] * size, width)
        for (ids, vectors), start in zip(factors, starts, strict=False):
            place = torch.searchsorted(rows_used, ids.flatten(0, 1).contiguous()) - rows.start  # [n · k, T]
            sample = torch.arange(start, start + len(place), device=ids.device)[:, None]
            inside = (place >= 0) & (place < size)
            gradients.index_add_(0, (sample * size + place)[inside], vectors.flatten(0, 1)[inside])
        yield gradients.view(starts[-1], size * width)


def vector_slices(factors: Sequence[Vector], share: Share) -> Iterator[Tensor]:
    """The gradients of all samples."""
    if share[0] == 0:
        yield torch.cat([factor.gradients.flatten(0, 1) for factor in factors])


def shared_slices(count: int, bytes_per_row: int, share: Share) -> Iterator[slice]:
    """Slices of rows of SLICE_BYTES at most, or one row; every rank gets every world-size-th of them."""
    rank, world = share
    step = max(1, min(SLICE_BYTES // bytes_per_row, -(-count // world)))
    for start in range(rank * step, count, world * step):
        yield slice(start, min(start + step, count))


def sample_starts(factors: Sequence[Factor]) -> list[int]:
    """The first sample of every batch, and at the end the number of samples."""
    starts = [0]
    for factor in factors:
        starts.append(starts[-1] + factor[0].shape[:2].numel())
    return starts
