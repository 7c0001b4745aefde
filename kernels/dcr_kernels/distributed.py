"""The batch of all ranks: agreed on, gathered, or refused by all of them together.

Shapes: n rows of this rank, N rows of all ranks, D width, R ranks of the group.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Problem = tuple[type[Exception], str]


class Batch(NamedTuple):
    """The rows of all ranks, without autograd history, in the order of the ranks.

    Shares are padded to the longest with dead rows, so row k of rank r lies at r·longest + k.
    """

    h: Tensor  # [N, D]
    labels: Tensor  # [N], negative: dead
    own: slice  # where the n rows of this rank lie
    group: dist.ProcessGroup | None
    num_ranks: int


def gather_batch(
    h: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup | None,
    check_finite: bool = False,
) -> Batch:
    """Check h [n, D] and labels [n], then gather both over `group`; called by all ranks of the group.

    Without a group the batch is the local one. A problem on one rank is an error on every rank: a rank that
    raised alone would leave the others waiting in the next collective.
    """
    problem = find_problem(h, labels, check_finite)
    if group is None:
        if problem is not None:
            error, message = problem
            raise error(message)
        return Batch(h.detach(), labels, slice(0, len(labels)), None, 1)

    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("this process is not a member of the group it passed")
    longest = _agree(h, problem, group, num_ranks)

    own = slice(rank * longest, rank * longest + len(labels))
    padding = longest - len(labels)
    padded_h = torch.nn.functional.pad(h.detach(), (0, 0, 0, padding))
    padded_labels = torch.nn.functional.pad(labels, (0, padding), value=-1)
    return Batch(_all_gather(padded_h, group), _all_gather(padded_labels, group), own, group, num_ranks)


def find_problem(h: Tensor, labels: Tensor, check_finite: bool = False) -> Problem | None:
    """Say what is wrong with a rank's own inputs, as the kind of error to raise and its message, or None.

    No exception object: a frame that holds the exception it raises is a cycle. It would keep h alive, and the
    process group, whose threads then abort the exit of a rank.
    """
    for name, value in (("h", h), ("labels", labels)):
        if not isinstance(value, Tensor):
            return TypeError, f"{name} must be a torch.Tensor, got {type(value).__name__}"
    if h.dtype not in _DTYPES:
        return TypeError, f"h must be float32, float64, bfloat16 or float16, got {h.dtype}"
    if labels.dtype != torch.int64:
        return TypeError, f"labels must be int64, got {labels.dtype}; use labels.long()"
    if h.ndim != 2:
        return ValueError, f"h must have shape [N, D], got {list(h.shape)}; pool the tokens first"
    if 0 in h.shape:
        return ValueError, (
            f"h must have at least one row and one column, got {list(h.shape)}; "
            "a rank without samples passes one row labelled -1"
        )
    if labels.shape != h.shape[:1]:
        return ValueError, f"labels must have shape [{len(h)}], one per row of h, got {list(labels.shape)}"
    if labels.device != h.device:
        return ValueError, f"h and labels must be on one device, got {h.device} and {labels.device}"
    if check_finite:
        broken = (~h.detach().isfinite().all(dim=1) & (labels >= 0)).nonzero()
        if len(broken):
            return ValueError, f"h is not finite in row {broken[0].item()} ({len(broken)} such rows)"
    return None


def _agree(h: Tensor, problem: Problem | None, group: dist.ProcessGroup, num_ranks: int) -> int:
    """Compare the shares of all ranks and return the number of rows of the longest, or raise on all ranks."""
    header = [0, 0, 0, 0] if problem else [1, len(h), h.shape[1], _DTYPES.index(h.dtype)]
    device = h.device if isinstance(h, Tensor) else torch.device("cpu")
    headers = _all_gather(torch.tensor([header], device=device), group).tolist()
    if problem is not None:
        error, message = problem
        raise error(message)
    if refused := [rank for rank in range(num_ranks) if not headers[rank][0]]:
        raise ValueError(f"ranks {refused} of the group passed inputs that cannot be used; they say why")
    _, num_rows, widths, dtypes = zip(*headers, strict=True)
    if len(set(widths)) > 1:
        raise ValueError(f"h must have one width D on all ranks, got {list(widths)} from rank 0 on")
    if len(set(dtypes)) > 1:
        names = ", ".join(str(_DTYPES[code]) for code in dtypes)
        raise ValueError(f"h must have one dtype on all ranks, got {names} from rank 0 on")
    return max(num_rows)


def _all_gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate equally shaped [k, …] tensors of all ranks along the first dimension."""
    # As bytes: a copy needs no arithmetic, and so no support for the dtype in the communication backend.
    local = rows.contiguous().view(torch.uint8)
    pieces = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, local, group=group)
    return torch.cat(pieces).view(rows.dtype)
