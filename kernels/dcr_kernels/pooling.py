"""One vector per sequence out of its hidden states.

Shapes: B sequences, T tokens (of the longest sequence, or of all together when packed), D width.
"""

from typing import Literal

import torch
from torch import Tensor

from .unit import working_dtype


def pool(
    hidden: Tensor,
    how: Literal["last", "mean"] = "last",
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pool hidden states to h [B, D] and return it with the length of each of its rows [B].

    Args:
        hidden: [B, T, D] padded, or [T, D] packed.
        how: "last", the last real token, or "mean", the mean over the real tokens.
        mask: [B, T] bool or integer, nonzero where a token is real; padding on either side, or both. None:
            all tokens are real.
        cu_seqlens: [B + 1] int32 or int64 for packed sequences: sequence b is tokens cu_seqlens[b] to
            cu_seqlens[b + 1]. Tokens after the last sequence are padding.

    Returns:
        h keeps the dtype of `hidden` for "last", whose values are exact. For "mean" it is in float32 (float64
        for float64): rounding the mean back to bfloat16 would throw away what averaging gained.
        The row length |h| is in the same working precision, without gradient.

    A sequence without a real token is a ValueError that names its row.
    """
    if how not in ("last", "mean"):
        raise ValueError(f"how must be last or mean, got {how!r}")
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if hidden.ndim == 3 and cu_seqlens is None:
        h = _pool_padded(hidden, how, mask)
    elif hidden.ndim == 2 and cu_seqlens is not None and mask is None:
        h = _pool_packed(hidden, how, cu_seqlens)
    else:
        raise ValueError(
            "hidden must be padded [B, T, D] with an optional mask, or packed [T, D] with cu_seqlens; "
            f"got shape {list(hidden.shape)} {'with' if mask is not None else 'without'} mask "
            f"and {'with' if cu_seqlens is not None else 'without'} cu_seqlens"
        )
    return h, torch.linalg.vector_norm(h.detach(), dim=1, dtype=working_dtype(h.dtype))


def _pool_padded(hidden: Tensor, how: str, mask: Tensor | None) -> Tensor:
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.is_floating_point() or mask.is_complex():
        # An additive mask is 0 where a token is real: read as a 0/1 mask it would select the padding.
        raise TypeError(f"mask must be bool or integer, got {mask.dtype}")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"mask must have shape {list(hidden.shape[:2])}, got {list(mask.shape)}")
    real = mask != 0
    _refuse_empty(real.sum(dim=1))
    if how == "last":
        last = real.shape[1] - 1 - real.flip(1).to(torch.int8).argmax(dim=1)  # argmax: the first maximum
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    # Selecting, not multiplying: padding may hold NaN.
    total = torch.where(real[:, :, None], hidden, 0).sum(dim=1, dtype=working_dtype(hidden.dtype))
    return total / real.sum(dim=1)[:, None]


def _pool_packed(hidden: Tensor, how: str, cu_seqlens: Tensor) -> Tensor:
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens must have shape [B + 1], B ≥ 1, got {list(cu_seqlens.shape)}")
    bounds = cu_seqlens.tolist()
    lengths = cu_seqlens.diff()
    if bounds[0] != 0 or bounds[-1] > len(hidden) or bounds != sorted(bounds):
        raise ValueError(
            f"cu_seqlens must rise from 0 to at most {len(hidden)}, the number of tokens, got {bounds[:8]}"
            f"{' …' if len(bounds) > 8 else ''} ending in {bounds[-1]}"
        )
    _refuse_empty(lengths)
    if how == "last":
        return hidden[cu_seqlens[1:].to(hidden.device) - 1]
    # One split has one backward; B slices would each fill a gradient of all tokens.
    pieces = hidden[: bounds[-1]].split(lengths.tolist())
    total = torch.stack([piece.sum(dim=0, dtype=working_dtype(hidden.dtype)) for piece in pieces])
    return total / lengths[:, None].to(hidden.device)


def _refuse_empty(lengths: Tensor) -> None:
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} has no real token ({len(empty)} such rows of {len(lengths)})")
