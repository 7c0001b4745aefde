"""Triton kernels that pool hidden states, and their launches. Importing this imports triton.

Each reads the real tokens once, or writes the gradient once; no copy of the hidden states in another precision is
made, and nothing waits for the device. Sums over tokens that several programs share are merged in a fixed order,
without atomics, so a second run is equal bit for bit.

Shapes: B sequences, T tokens (of the longest sequence, or of all together when packed), D width, S splits of a
sequence: split s takes every S-th block of its tokens, which is balanced whatever its length is.
Prefixes: i_ program ids and positions, o_ offsets, m_ masks, p_ pointers, b_ values of a block. Suffixes: _t tokens,
_d columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_T, BLOCK_D = 32, 128
_SCAN = 1024  # mask entries looked at together
_PROGRAMS = 1024  # about eight for each multiprocessor of a large GPU: enough loads in flight to fill its memory bus
_MAX_SPLITS = 64  # one program merges the splits of a sequence


@triton.jit
def _bounds(p_cu_seqlens, i_b, B, T):
    """The first token of sequence i_b and the one after its last; i_b = B is the padding after packed sequences."""
    begin = T * 0
    end = T
    if p_cu_seqlens is not None:
        begin = tl.load(p_cu_seqlens + i_b)
        end = tl.load(p_cu_seqlens + i_b + 1, mask=i_b < B, other=T)
    return begin, end


@triton.jit
def _real(p_mask, i_b, o_t, end, T):
    m_t = o_t < end
    if p_mask is not None:
        m_t = m_t & (tl.load(p_mask + i_b * T + o_t, mask=m_t, other=0) != 0)
    return m_t


@triton.jit
def _num_real(p_mask, i_b, begin, end, T, SCAN: tl.constexpr):
    length = end - begin
    if p_mask is not None:
        b_count = tl.zeros([SCAN], dtype=tl.int32)
        for i_t in range(begin, end, SCAN):
            b_count += _real(p_mask, i_b, i_t + tl.arange(0, SCAN), end, T).to(tl.int32)
        length = tl.sum(b_count, axis=0)
    return length.to(tl.float32)


@triton.jit(do_not_specialize=["B", "T"])
def last_kernel(
    p_hidden,  # [B, T, D] or [T, D]
    p_mask,  # [B, T] or None
    p_cu_seqlens,  # [B + 1] or None
    p_h,  # [B, D]
    p_norm,  # [B]
    p_position,  # [B] last real token, −1 where there is none
    B, T, stride_b, stride_t,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """One sequence a program: find its last real token, copy it, measure it."""
    i_b = tl.program_id(0).to(tl.int64)
    begin, end = _bounds(p_cu_seqlens, i_b, B, T)
    last = end - 1
    if p_mask is not None:
        b_last = tl.full([SCAN], -1, dtype=tl.int32)
        for i_t in range(begin, end, SCAN):
            o_t = i_t + tl.arange(0, SCAN)
            b_last = tl.maximum(b_last, tl.where(_real(p_mask, i_b, o_t, end, T), o_t, -1))
        last = tl.max(b_last, axis=0)
    has_last = last >= begin
    readable = tl.where(has_last, D, 0)  # not `m_d & has_last`: the interpreter cannot broadcast a single boolean
    last = last.to(tl.int64)
    square = 0.0
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        p_row = p_hidden + i_b * stride_b + last * stride_t
        b_row = tl.load(p_row + o_d, mask=o_d < readable, other=0.0).to(tl.float32)
        b_row = tl.where(o_d < readable, b_row, float("nan"))
        tl.store(p_h + i_b * D + o_d, b_row.to(p_h.dtype.element_ty), mask=m_d)  # exact: it was of this type
        square += tl.sum(tl.where(m_d, b_row * b_row, 0.0), axis=0)
    tl.store(p_norm + i_b, tl.sqrt(square))
    tl.store(p_position + i_b, tl.where(has_last, last, -1))


@triton.jit(do_not_specialize=["B", "T"])
def mean_kernel(
    p_hidden,  # [B, T, D] or [T, D]
    p_mask,  # [B, T] or None
    p_cu_seqlens,  # [B + 1] or None
    p_out,  # [B, S, D] sums where SPLIT, else the means [B, D]
    p_norm,  # [B] of the means, unless SPLIT
    p_length,  # [B] real tokens, unless SPLIT
    B, T, stride_b, stride_t,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, SCAN: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Sum the real tokens of one split of one sequence, all of D; finish the mean where there is one split only."""
    i_b, i_s, num_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    begin, end = _bounds(p_cu_seqlens, i_b, B, T)
    if not SPLIT:
        length = _num_real(p_mask, i_b, begin, end, T, SCAN)
    square = 0.0
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_sum = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for i_t in range(begin + i_s * BLOCK_T, end, num_splits * BLOCK_T):
            o_t = i_t + tl.arange(0, BLOCK_T)
            m_t = _real(p_mask, i_b, o_t, end, T)
            p_tile = p_hidden + i_b * stride_b + o_t.to(tl.int64)[:, None] * stride_t + o_d[None, :]
            # Not loading, rather than multiplying by 0: padding may hold NaN.
            b_sum += tl.load(p_tile, mask=m_t[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        b_out = tl.sum(b_sum, axis=0)
        if not SPLIT:
            b_out = b_out / length
            square += tl.sum(tl.where(m_d, b_out * b_out, 0.0), axis=0)  # 0 / 0 in the columns past D
        tl.store(p_out + (i_b * num_splits + i_s) * D + o_d, b_out, mask=m_d)
    if not SPLIT:
        tl.store(p_norm + i_b, tl.sqrt(square))
        tl.store(p_length + i_b, length)


@triton.jit(do_not_specialize=["B", "T", "num_splits"])
def merge_kernel(
    p_sums,  # [B, S, D]
    p_mask,  # [B, T] or None
    p_cu_seqlens,  # [B + 1] or None
    p_h,  # [B, D]
    p_norm,  # [B]
    p_length,  # [B]
    B, T, num_splits,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """One sequence a program: the mean and its length from the sums of the splits."""
    i_b = tl.program_id(0).to(tl.int64)
    begin, end = _bounds(p_cu_seqlens, i_b, B, T)
    length = _num_real(p_mask, i_b, begin, end, T, SCAN)
    square = 0.0
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_sum = tl.zeros([BLOCK_S, BLOCK_D], dtype=tl.float32)
        for i_s in range(0, num_splits, BLOCK_S):
            o_s = i_s + tl.arange(0, BLOCK_S)
            p_tile = p_sums + (i_b * num_splits + o_s)[:, None] * D + o_d[None, :]
            b_sum += tl.load(p_tile, mask=(o_s < num_splits)[:, None] & m_d[None, :], other=0.0)
        b_h = tl.sum(b_sum, axis=0) / length
        square += tl.sum(tl.where(m_d, b_h * b_h, 0.0), axis=0)
        tl.store(p_h + i_b * D + o_d, b_h, mask=m_d)
    tl.store(p_norm + i_b, tl.sqrt(square))
    tl.store(p_length + i_b, length)


@triton.jit(do_not_specialize=["B", "T"])
def mean_backward_kernel(
    p_gradient,  # [B, D] of the means
    p_length,  # [B]
    p_mask,  # [B, T] or None
    p_cu_seqlens,  # [B + 1] or None
    p_out,  # [B, T, D] or [T, D], contiguous: the gradient of the hidden states
    B, T,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Write one split of one sequence, all of D: gradient / length to real tokens, 0 to the others."""
    i_b, i_s, num_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    begin, end = _bounds(p_cu_seqlens, i_b, B, T)
    length = tl.load(p_length + i_b, mask=i_b < B, other=1.0)
    readable = tl.where(i_b < B, D, 0)
    p_rows = p_out
    if not PACKED:
        p_rows += i_b * T * D
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_gradient = tl.load(p_gradient + i_b * D + o_d, mask=o_d < readable, other=0.0).to(tl.float32) / length
        for i_t in range(begin + i_s * BLOCK_T, end, num_splits * BLOCK_T):
            o_t = i_t + tl.arange(0, BLOCK_T)
            m_t = _real(p_mask, i_b, o_t, end, T)
            b_out = tl.where(m_t[:, None], b_gradient[None, :], 0.0)
            p_tile = p_rows + o_t.to(tl.int64)[:, None] * D + o_d[None, :]
            tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=(o_t < end)[:, None] & m_d[None, :])


INTERPRETED = not isinstance(last_kernel, triton.runtime.JITFunction)  # decided when this was imported


def last(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The last real tokens [B, D], their lengths [B] and their positions [B]; NaN and −1 for an empty sequence."""
    hidden, mask, cu_seqlens = _addressable(hidden, mask, cu_seqlens)
    B, T, *strides = _sizes(hidden, cu_seqlens)
    D = hidden.shape[-1]
    h = hidden.new_empty(B, D)
    norm = hidden.new_empty(B, dtype=torch.float32)
    position = hidden.new_empty(B, dtype=torch.int64)
    with torch.cuda.device_of(hidden):
        last_kernel[(B,)](
            hidden, mask, cu_seqlens, h, norm, position, B, T, *strides, D=D, BLOCK_D=_power_of_2(D, 1024), SCAN=_SCAN
        )
    return h, norm, position


def mean(
    hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """The means [B, D] over the real tokens, NaN for an empty sequence, and their lengths [B], both in float32."""
    return _Mean.apply(hidden, mask, cu_seqlens, splits)


class _Mean(torch.autograd.Function):
    """hidden [B, T, D] or [T, D] to its means [B, D] and their lengths [B], in two launches or one; one backward."""

    @staticmethod
    def forward(ctx, hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, splits: int | None):
        hidden, mask, cu_seqlens = _addressable(hidden, mask, cu_seqlens)
        h, norm, length = _mean_forward(hidden, mask, cu_seqlens, splits)
        ctx.save_for_backward(mask, cu_seqlens, length)
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        ctx.mark_non_differentiable(norm)
        return h, norm

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _):
        mask, cu_seqlens, length = ctx.saved_tensors
        out = gradient.new_empty(ctx.shape, dtype=ctx.dtype)
        B, T, *_ = _sizes(out, cu_seqlens)
        D, packed = out.shape[-1], cu_seqlens is not None
        blocks = min(triton.cdiv(T, BLOCK_T), triton.cdiv(_PROGRAMS, max(B, 1)))
        with torch.cuda.device_of(out):
            mean_backward_kernel[(B + packed, blocks)](
                gradient.contiguous(), length, mask, cu_seqlens, out, B, T,
                D=D, BLOCK_T=BLOCK_T, BLOCK_D=_power_of_2(D, BLOCK_D), PACKED=packed,
            )  # fmt: skip
        return out, None, None, None


def _mean_forward(
    hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, splits: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, *strides = _sizes(hidden, cu_seqlens)
    D = hidden.shape[-1]
    splits = splits or _num_splits(B, T)
    h = hidden.new_empty(B, D, dtype=torch.float32)
    norm, length = h.new_empty(B), h.new_empty(B)
    out = h if splits == 1 else h.new_empty(B, splits, D)
    blocks = dict(BLOCK_D=_power_of_2(D, BLOCK_D), SCAN=_SCAN)
    with torch.cuda.device_of(hidden):
        mean_kernel[(B, splits)](
            hidden, mask, cu_seqlens, out, norm, length, B, T, *strides,
            D=D, BLOCK_T=BLOCK_T, SPLIT=splits > 1, **blocks,
        )  # fmt: skip
        if splits > 1:
            merge_kernel[(B,)](out, mask, cu_seqlens, h, norm, length, B, T, splits, D=D, BLOCK_S=16, **blocks)
    return h, norm, length


def _num_splits(B: int, T: int) -> int:
    return max(1, min(triton.cdiv(T, BLOCK_T), triton.cdiv(_PROGRAMS, max(B, 1)), _MAX_SPLITS))


def _power_of_2(width: int, most: int) -> int:
    return min(triton.next_power_of_2(width), most)


def _addressable(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None):
    """The same tensors where the kernels can address them: columns of hidden adjacent, the others contiguous."""
    if hidden.stride(-1) != 1:
        hidden = hidden.contiguous()
    mask, cu_seqlens = (
        None if tensor is None else tensor.to(hidden.device).contiguous() for tensor in (mask, cu_seqlens)
    )
    return hidden, mask, cu_seqlens


def _sizes(hidden: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int, int]:
    """B, T and the distances from a sequence and from a token to the next."""
    if cu_seqlens is None:
        return *hidden.shape[:2], *hidden.stride()[:2]
    return len(cu_seqlens) - 1, len(hidden), 0, hidden.stride(0)
