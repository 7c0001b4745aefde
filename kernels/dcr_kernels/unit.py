"""Lengths of rows, the gradient through normalisation, and the working precision.

Shapes: N rows, D width.
"""

import torch
from torch import Tensor

# torch.nn.functional.normalize uses the same number; a hidden state this short has no direction.
EPSILON = 1e-12


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic runs in float64 for float64 inputs and in float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_lengths(h: Tensor) -> Tensor:
    """1/|h_i| [N] of the rows of h [N, D] in working precision.

    A row with a norm of at most EPSILON has no direction and gets 0: its cosine with every other row is 0 and it has no
    gradient, whereas a plain clamp would amplify the gradient by 1/EPSILON. A row whose norm overflows gets NaN, not
    the 0 that 1/∞ would be.
    """
    length = torch.linalg.vector_norm(h, dim=1, dtype=working_dtype(h.dtype))
    # The clamp keeps the branch not taken finite: 1/0 would turn its zero gradient into NaN.
    return torch.where(length > EPSILON, 1 / length.clamp(min=EPSILON), 0).masked_fill(length.isinf(), torch.nan)


def unit_rows(h: Tensor) -> Tensor:
    """Divide each row of h [N, D] by its length, in working precision; a row without direction becomes 0."""
    h = h.to(working_dtype(h.dtype))  # cast once: two uses of a bfloat16 h would round its gradient twice
    return h * inverse_lengths(h)[:, None]


def through_length(toward: Tensor, h: Tensor, inverse_length: Tensor, labels: Tensor, factor: float) -> Tensor:
    """Take ∂L/∂e [N, D] of the unit rows e = h / |h| to factor · ∂L/∂h; overwrites `toward`.

    ∂L/∂h_i = (t_i − ⟨t_i, e_i⟩ e_i) / |h_i|. Dead rows and rows without direction get exactly 0.
    """
    radial = torch.linalg.vecdot(toward, h.to(toward.dtype)) * inverse_length  # [N]
    toward.addcmul_(h.to(toward.dtype), (radial * inverse_length)[:, None], value=-1)
    toward.mul_((factor * inverse_length)[:, None])
    return toward.masked_fill_(((labels < 0) | (inverse_length == 0))[:, None], 0)
