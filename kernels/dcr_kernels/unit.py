"""Unit vectors of raw rows, and the precision everything is computed in.

Shapes: N rows, D width.
"""

import torch
from torch import Tensor

# torch.nn.functional.normalize uses the same number; a hidden state this short has no direction.
EPSILON = 1e-12


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic runs in float64 for float64 inputs and in float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(h: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row of h [N, D] by its length; return the unit rows [N, D] and 1/length [N].

    Both are in working precision.

    A row no longer than EPSILON has no direction. It becomes the zero vector with 1/length = 0: its cosine
    with every other row is 0 and no gradient passes through it, where a plain clamp would amplify the
    gradient by 1/EPSILON.
    """
    h = h.to(working_dtype(h.dtype))
    length = torch.linalg.vector_norm(h, dim=1)
    # The clamp keeps the branch not taken finite: 1/0 would turn its zero gradient into NaN.
    inverse_length = torch.where(length > EPSILON, 1 / length.clamp(min=EPSILON), 0)
    return h * inverse_length[:, None], inverse_length
