"""Pool hidden states to one vector per sequence.

Shapes: B sequences, T tokens (of the longest sequence, or of all together when packed), D width.
"""

import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .unit import working_dtype

BACKENDS = ("auto", "reference", "triton")


def pool(
    hidden: Tensor,
    how: Literal["last", "mean"] = "last",
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    backend: Literal["auto", "reference", "triton"] = "auto",
    check_values: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pool hidden states to h [B, D] and return it with the length of each of its rows [B].

    Args:
        hidden: [B, T, D] padded, or [T, D] packed.
        how: "last", the last real token, or "mean", the mean over the real tokens.
        mask: [B, T] bool or integer, nonzero where a token is real; padding on either side, both, or between. None:
            all tokens are real.
        cu_seqlens: [B + 1] int32 or int64 for packed sequences: sequence b is tokens cu_seqlens[b] to
            cu_seqlens[b + 1]. Tokens after the last sequence are padding.
        backend: "triton", "reference" (PyTorch), or "auto": Triton for CUDA tensors if it is installed. float64 is
            always computed by PyTorch. On a CPU Triton needs its interpreter, TRITON_INTERPRET=1.
        check_values: whether to check the values of a mask or cu_seqlens on a GPU too, which waits for the GPU.
            Unchecked, a sequence without a real token becomes NaN and bounds outside of `hidden` are undefined.

    Returns:
        h keeps the dtype of `hidden` for "last", whose values are exact. For "mean" it is in float32 (float64
        for float64): rounding the mean back to bfloat16 would throw away what averaging gained.
        The row length |h| is in the same working precision, without gradient.

    The gradient can be taken once (not twice differentiable by the kernels and by "last"). That of "last" is B
    rows: if `hidden` has another consumer, they are added to its gradient without a dense tensor of their own.

    A sequence without a real token is a ValueError that names its row.
    """
    if how not in ("last", "mean"):
        raise ValueError(f"how must be last or mean, got {how!r}")
    for name, value in {"hidden": hidden, "mask": mask, "cu_seqlens": cu_seqlens}.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if hidden.ndim == 3 and cu_seqlens is None:
        _check_padded(hidden, mask, check_values)
    elif hidden.ndim == 2 and cu_seqlens is not None and mask is None:
        _check_packed(hidden, cu_seqlens, check_values)
    else:
        raise ValueError(
            "hidden must be padded [B, T, D] with an optional mask, or packed [T, D] with cu_seqlens; "
            f"got shape {list(hidden.shape)} {'with' if mask is not None else 'without'} mask "
            f"and {'with' if cu_seqlens is not None else 'without'} cu_seqlens"
        )
    last, mean = _implementation(hidden, backend)
    if how == "mean":
        return mean(hidden, mask, cu_seqlens)
    return _pool_last(hidden, mask, cu_seqlens, last)


def _check_padded(hidden: Tensor, mask: Tensor | None, check_values: bool) -> None:
    if mask is None:
        return _refuse_empty(torch.full((len(hidden),), hidden.shape[1]))
    if mask.is_floating_point() or mask.is_complex():
        # An additive mask is 0 where a token is real: read as a 0/1 mask it would select the padding.
        raise TypeError(f"mask must be bool or integer, got {mask.dtype}")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"mask must have shape {list(hidden.shape[:2])}, got {list(mask.shape)}")
    if check_values or not mask.is_cuda:
        _refuse_empty((mask != 0).sum(dim=1))


def _check_packed(hidden: Tensor, cu_seqlens: Tensor, check_values: bool) -> None:
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens must have shape [B + 1], B ≥ 1, got {list(cu_seqlens.shape)}")
    if not check_values and cu_seqlens.is_cuda:
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] > len(hidden) or bounds != sorted(bounds):
        raise ValueError(
            f"cu_seqlens must rise from 0 to at most {len(hidden)}, the number of tokens, got {bounds[:8]}"
            f"{' …' if len(bounds) > 8 else ''} ending in {bounds[-1]}"
        )
    _refuse_empty(cu_seqlens.diff())


def _refuse_empty(lengths: Tensor) -> None:
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} has no real token ({len(empty)} such rows of {len(lengths)})")


def _implementation(hidden: Tensor, backend: str) -> tuple[Callable, Callable]:
    """The functions last and mean of the backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = "triton" if hidden.is_cuda and find_spec("triton") is not None else "reference"
    if backend == "reference" or hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return _last_reference, _mean_reference
    if find_spec("triton") is None:
        raise ValueError("backend triton needs the package triton: pip install triton, or backend='reference'")
    from . import triton_pooling  # only here: it imports triton

    if not hidden.is_cuda and not triton_pooling.INTERPRETED:
        raise ValueError(
            "backend triton needs a GPU; on a CPU it only runs in Triton's interpreter, with TRITON_INTERPRET=1 set "
            "before triton is imported. Use backend='reference'"
        )
    return triton_pooling.last, triton_pooling.mean


def _mean_reference(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(hidden.dtype)
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff()
        # One split has one backward; B slices would each fill a gradient of all tokens.
        pieces = hidden[: int(cu_seqlens[-1])].split(lengths.tolist())
        total = torch.stack([piece.sum(dim=0, dtype=dtype) for piece in pieces])
    elif mask is not None:
        real = (mask != 0).to(hidden.device)
        lengths = real.sum(dim=1)
        # Selecting, not multiplying: padding may hold NaN.
        total = torch.where(real[:, :, None], hidden, 0).sum(dim=1, dtype=dtype)
    else:
        lengths = torch.full((len(hidden),), hidden.shape[1])
        total = hidden.sum(dim=1, dtype=dtype)
    h = total / lengths[:, None].to(total.device)
    return h, torch.linalg.vector_norm(h.detach(), dim=1)


def _last_reference(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The last real tokens [B, D], their lengths [B] and their positions [B]; NaN and −1 for an empty sequence."""
    if cu_seqlens is not None:
        ends = cu_seqlens[1:].to(hidden.device, torch.int64)
        position = torch.where(cu_seqlens.diff().to(hidden.device) > 0, ends - 1, -1)
    elif mask is not None:
        tokens = torch.arange(hidden.shape[1], device=hidden.device)
        position = torch.where(mask.to(hidden.device) != 0, tokens, -1).amax(dim=1)
    else:
        position = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
    h = torch.where(position[:, None] >= 0, hidden[_index(position, hidden.ndim)], torch.nan)
    return h, torch.linalg.vector_norm(h, dim=1, dtype=working_dtype(h.dtype)), position


def _index(position: Tensor, ndim: int) -> tuple[Tensor, ...]:
    """Address one token of each sequence in padded (ndim 3) or packed (ndim 2) hidden states."""
    return (torch.arange(len(position), device=position.device), position)[3 - ndim :]


def _pool_last(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, last: Callable) -> tuple[Tensor, Tensor]:
    if not (hidden.requires_grad and torch.is_grad_enabled()):
        return last(hidden, mask, cu_seqlens)[:2]
    rows = _RowGradients()
    h, row_norm = _Last.apply(hidden, mask, cu_seqlens, last, rows)
    handle = hidden.register_hook(rows.add_to)
    hooks = hidden._backward_hooks
    assert hooks is not None  # created by register_hook
    for other in [key for key in hooks if key != handle.id]:
        hooks[other] = hooks.pop(other)  # after ours: they must see the whole gradient
    weakref.finalize(h.grad_fn, handle.remove).atexit = False  # otherwise a leaf would collect one hook per step
    return h, row_norm


class _Last(torch.autograd.Function):
    """Gather rows. The backward keeps their gradients for a hook on `hidden` and sends it a 0 that needs no memory.

    The 0 is necessary: without a gradient, a hook on `hidden` is not called. And autograd adds the 0 to the gradients
    of other consumers of `hidden`, in place if it is their only owner, otherwise into new memory. What the hook then
    gets is used nowhere else (such as at z in hidden + z), and may be modified.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, last, rows: "_RowGradients"):
        h, row_norm, position = last(hidden, mask, cu_seqlens)
        ctx.save_for_backward(position)
        ctx.shape, ctx.rows = hidden.shape, rows
        ctx.mark_non_differentiable(row_norm)
        return h, row_norm

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _):
        (position,) = ctx.saved_tensors
        zero = ctx.rows.keep(_index(position, len(ctx.shape)), gradient)
        return zero.expand(ctx.shape), None, None, None, None


class _RowGradients:
    """The gradients of pooled rows between the backward of the pooling and the hook on the hidden states.

    They are kept by the backward pass they belong to: the rows of one that failed halfway must not join the next.
    """

    def __init__(self):
        self.kept: dict[int, tuple[Tensor, tuple[Tensor, ...], Tensor]] = {}

    def keep(self, index: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Keep rows [B, D] for the tokens at `index`; return the 0 by which add_to detects no other gradient."""
        zero = rows.new_zeros(())
        self.kept[torch._C._current_graph_task_id()] = zero, index, rows
        return zero

    def add_to(self, gradient: Tensor) -> Tensor | None:
        """Hook: add what is kept to the gradient of the hidden states, [B, T, D] or [T, D], in place if possible."""
        kept = self.kept.pop(torch._C._current_graph_task_id(), None)
        if kept is None:
            return None
        zero, index, rows = kept
        for tensor in (rows, *index):
            if tensor.is_cuda:  # autograd does not see this use, which may be on another stream than the first
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        rows = rows.to(gradient.dtype)
        if gradient.requires_grad:  # create_graph: the result must stay attached, to fail when differentiated
            return gradient.index_put(index, rows, accumulate=True)
        if gradient.data_ptr() == zero.data_ptr():
            gradient = gradient.new_zeros(gradient.shape)
        return gradient.index_put_(index, rows, accumulate=True)
