"""The batch of all ranks: checked, gathered, or rejected by all of them together.

Shapes: n rows of this rank, N rows of all ranks with the padding between them, D width, R ranks of the group.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .unit import working_dtype

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Problem = tuple[type[Exception], str]


class Batch(NamedTuple):
    """The rows of all ranks, without autograd history, in the order of the ranks.

    Shares are padded to the longest with dead rows, so row k of rank r lies at r·longest + k.
    """

    h: Tensor  # [N, D]
    labels: Tensor  # [N], negative: dead
    own: slice  # the n rows of this rank
    group: dist.ProcessGroup | None
    num_ranks: int
    positives: Tensor | None = None  # [N] the given positive of each row, −1 for none


def gather_batch(
    h: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup | None,
    check_values: bool = False,
    positives: Tensor | None = None,
    wants_positives: bool = False,
) -> Batch:
    """Check h [n, D], labels [n] and positives [n], then gather them over `group`; called by all its ranks.

    Without a group the batch is the local one. A problem on one rank is an error on every rank: a rank that
    raised alone would leave the others waiting in the next collective.
    """
    problem = find_problem(h, labels, check_values, positives)
    if wants_positives != (positives is not None):
        problem = TypeError, "InfoNCE, and no other loss, is given positives [N]: for each row another of its label"
    elif problem is None and positives is not None:
        positives = positives.masked_fill(labels < 0, -1)  # a dead row has no positive
    if group is None:
        if problem is not None:
            error, message = problem
            raise error(message)
        batch = Batch(h.detach(), labels, slice(0, len(labels)), None, 1, positives)
    else:
        rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ValueError("this rank is not a member of the group")
        num_rows = _agree(h, problem, group, num_ranks)
        longest = max(num_rows)
        own = slice(rank * longest, rank * longest + len(labels))
        padding = longest - len(labels)
        padded_h = F.pad(h.detach(), (0, 0, 0, padding))
        padded_labels = F.pad(labels, (0, padding), value=-1)
        batch = Batch(_all_gather(padded_h, group), _all_gather(padded_labels, group), own, group, num_ranks)
        if positives is not None:
            places = F.pad(_place(positives, num_rows), (0, padding), value=-1)
            batch = batch._replace(positives=_all_gather(places, group))
    if batch.positives is not None and (check_values or h.device.type == "cpu"):
        _check_positives(batch, batch.positives)
    return batch


def gather_columns(values: Tensor, batch: Batch) -> Tensor:
    """Concatenate the columns [k, n] of all ranks in the order of the batch: [k, N]."""
    if batch.group is None:
        return values
    longest = len(batch.h) // batch.num_ranks
    flat = F.pad(values, (0, longest - values.shape[1])).flatten()
    gathered = _all_gather(flat, batch.group).view(batch.num_ranks, len(values), longest)
    return gathered.transpose(0, 1).flatten(1)


def _place(row: Tensor, num_rows: list[int]) -> Tensor:
    """Rows counted over the shares of all ranks -> rows of the padded batch; −1 stays."""
    ends = torch.tensor(num_rows, device=row.device).cumsum(0)
    rank = torch.bucketize(row, ends, right=True)
    padding = max(num_rows) - torch.tensor([0, *num_rows], device=row.device)
    padding[0] = 0
    before = padding.cumsum(0)  # of the ranks before
    return torch.where(row >= 0, row + before[rank], -1)


def _check_positives(batch: Batch, positives: Tensor) -> None:
    """Reject invalid positives; all ranks see the same batch, so all raise or none."""
    index = positives.clamp(0, len(batch.labels) - 1)
    row = torch.arange(len(index), device=index.device)
    wrong = (positives >= len(index)) | (batch.labels[index] != batch.labels) | (index == row)
    wrong = (wrong & (positives >= 0) & (batch.labels >= 0)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"positives must name another row of the same label, or -1; row {first} names {positives[first]}"
            f" ({len(wrong)} such rows; rows are counted over all ranks, shares padded to the longest)"
        )


def find_problem(
    h: Tensor, labels: Tensor, check_values: bool = False, positives: Tensor | None = None
) -> Problem | None:
    """Return what is wrong with a rank's own inputs, as exception type and message, or None.

    Not as an exception object: a frame that refers to the exception it raises is a reference cycle, which keeps h alive
    and the process group, whose threads then abort the exit of a rank.
    """
    more = {} if positives is None else {"positives": positives}
    inputs: dict[str, object] = {"h": h, "labels": labels, **more}
    for name, thing in inputs.items():
        if not isinstance(thing, Tensor):
            return TypeError, f"{name} must be a torch.Tensor, got {type(thing).__name__}"
    if h.dtype not in _DTYPES:
        return TypeError, f"h must be float32, float64, bfloat16 or float16, got {h.dtype}"
    for name, value in {"labels": labels, **more}.items():
        if value.dtype != torch.int64:
            return TypeError, f"{name} must be int64, got {value.dtype}; use {name}.long()"
    if h.ndim != 2:
        return ValueError, f"h must have shape [N, D], got {list(h.shape)}; pool the tokens first"
    if 0 in h.shape:
        return ValueError, (
            f"h must have at least one row and one column, got {list(h.shape)}; "
            "a rank without samples passes one row labelled -1"
        )
    for name, value in {"labels": labels, **more}.items():
        if value.shape != h.shape[:1]:
            return ValueError, f"{name} must have shape [{len(h)}], one per row of h, got {list(value.shape)}"
        if value.device != h.device:
            return ValueError, f"h and {name} must be on one device, got {h.device} and {value.device}"
    if check_values:
        length = torch.linalg.vector_norm(h.detach(), dim=1, dtype=working_dtype(h.dtype))
        broken = (~length.isfinite() & (labels >= 0)).nonzero()
        if len(broken):
            return ValueError, (
                f"h is not finite in row {broken[0].item()} ({len(broken)} such rows); a length that overflows counts"
            )
    return None


def _agree(h: Tensor, problem: Problem | None, group: dist.ProcessGroup, num_ranks: int) -> list[int]:
    """Compare the shares of all ranks and return the number of rows of each, or raise on all ranks."""
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
    return list(num_rows)


def _all_gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate equally shaped [k, …] tensors of all ranks along the first dimension."""
    # As bytes: a copy needs no arithmetic, and so no support for the dtype in the communication backend.
    local = rows.contiguous().view(torch.uint8)
    pieces = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, local, group=group)
    return torch.cat(pieces).view(rows.dtype)
