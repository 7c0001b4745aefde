"""The losses in memory linear in the batch, in plain PyTorch: pairs are computed for one tile of rows at a time.

The rows are sorted by label, so the partners that share a label with any row of a tile are one range of columns (the
block), and outside of it every pair is negative. A label with enough rows gets tiles of its own, inside whose block
every pair is positive and no mask is needed.

Two passes over the tiles, each of rows of this rank against the rows of all ranks: the first for the statistics of
the rows, the second recomputes the tile and takes the gradient of this rank's rows, as anchors and as partners.
That costs no more multiplications than keeping the tile, because the matrix is symmetric: 2N²D for the statistics,
2N²D again, 2N²D for the gradient. On a single rank the second pass recomputes only the columns from the
tile on, N²D, and gives each tile to its rows and, transposed, to its columns.

Shapes: N live rows of all ranks sorted by label, n rows of this rank, C rows in a tile, K columns in its block, D
width, S statistics. A tile of cosines is scratch, which the functions with a trailing underscore overwrite.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import Batch
from .losses import Circle, Coefficients, InfoNCE, Loss, NTXent, SupCon, Triplet
from .unit import through_length

# A tile of 2 MiB in float32 stays, with its few temporaries, in the cache of a CPU core; a GPU wants larger
# matrix products. Below 128 rows the products lose more than the cache gains.
_CPU_TILE_ELEMENTS = 2**19
_GPU_TILE_ELEMENTS = 2**24
_MIN_TILE_ROWS = 128


class Tile(NamedTuple):
    rows: Tensor  # [C] places of the rows in the sorted batch
    block: slice  # the K columns that share a label with any of them
    same: Tensor | None  # [C, K] which rows share a label; None: all of them


class ChunkedPairs:
    """The pairs of a batch, computed for one tile of this rank's rows at a time."""

    def __init__(self, batch: Batch, inverse_length: Tensor):
        live = (batch.labels >= 0).nonzero().squeeze(1)
        self.order = live[batch.labels[live].argsort(stable=True)]  # [N] place in the sorted batch -> row
        self.unit = batch.h[self.order] * inverse_length[self.order, None]  # [N, D], in working precision
        own = (self.order >= batch.own.start) & (self.order < batch.own.stop)
        self.own = own.nonzero().squeeze(1)  # places of this rank's rows
        self.tiles = list(_tiles(batch.labels[self.order], self.own))
        self.batch = batch
        self.local = self.order - batch.own.start  # [N] place in the sorted batch -> row of this rank
        self.num_own = batch.own.stop - batch.own.start
        self.is_whole = batch.group is None  # then the tiles cover all rows in order

    def statistics(self, loss: Loss) -> tuple[Tensor, Tensor | None]:
        """The statistics [S, n] of this rank's rows and, for batch-hard triplets, the rows [2, n] they are from."""
        result = self.unit.new_zeros(loss.num_statistics, self.num_own)
        result[: loss.num_bounds] = -math.inf  # dead rows keep it
        chosen = self.order.new_zeros(2, self.num_own) if isinstance(loss, Triplet) else None
        for tile in self.tiles:
            positive, negative = self._logits(loss, tile)
            local = self.local[tile.rows]
            if chosen is None:
                result[:, local] = torch.stack(_statistics(loss, positive, negative))
            else:
                result[:, local], places = _hardest(positive, negative, tile, len(self.order))
                chosen[:, local] = self.order[places]
        return result, chosen

    def toward(self, loss: Loss, coefficients: Coefficients | None) -> Tensor:
        """∂L/∂e [n, D] of this rank's unit rows, from the pairs of all rows; 0 of a loss that chooses its pairs."""
        if coefficients is None:
            return self.unit.new_zeros(self.num_own, self.unit.shape[1])
        ordered = Coefficients(*(numbers[self.order] for numbers in coefficients))
        toward = self.unit.new_zeros(len(self.own), self.unit.shape[1])  # in the order of the tiles
        start = 0
        for tile in self.tiles:
            stop = start + len(tile.rows)
            first = start if self.is_whole else 0
            pull = self._pull(loss, ordered, tile, first)  # [C, N − first]
            toward[start:stop].addmm_(pull, self.unit[first:])
            if self.is_whole:
                toward[stop:].addmm_(pull[:, stop - first :].T, self.unit[tile.rows])
            start = stop
        result = toward.new_zeros(self.num_own, toward.shape[1])
        result[self.local[self.own]] = toward
        return result

    def _pull(self, loss: Loss, coefficients: Coefficients, tile: Tile, first: int) -> Tensor:
        """∂L/∂s [C, N − first] of the rows of a tile with the columns from `first` on."""
        pull = self.unit[tile.rows] @ self.unit[first:].T  # cosines, overwritten
        row = Coefficients(*(numbers[tile.rows, None] for numbers in coefficients))
        column = Coefficients(*(numbers[first:] for numbers in coefficients))
        hidden = max(0, first - tile.block.start)  # columns of the block that came before
        block = slice(tile.block.start + hidden - first, tile.block.stop - first)
        inside = pull[:, block]
        between = None if tile.same is None else inside.clone()
        _pull_positive_(loss, inside, row, _columns(column, block))
        if tile.same is not None and between is not None:
            _pull_negative_(loss, between, row, _columns(column, block))
            inside.copy_(torch.where(tile.same[:, hidden:], inside, between))
        for outside in _around(block):
            _pull_negative_(loss, pull[:, outside], row, _columns(column, outside))
        pull[torch.arange(len(pull), device=pull.device), tile.rows - first] = 0  # a row is not its own partner
        return pull

    def through_length(self, toward: Tensor, inverse_length: Tensor, factor: float) -> Tensor:
        """factor · ∂L/∂h [n, D] from ∂L/∂e."""
        h, labels, own = self.batch.h, self.batch.labels, self.batch.own
        return through_length(toward, h[own], inverse_length[own], labels[own], factor)

    def _logits(self, loss: Loss, tile: Tile) -> tuple[Tensor, list[Tensor]]:
        """Logits of the block [C, K] and of the columns before, after and, where labels are mixed, in it.

        They are −∞ where the pair is not of the kind.
        """
        cosine = self.unit[tile.rows] @ self.unit.T
        inside = cosine[:, tile.block]
        negative = [] if tile.same is None else [_negative_logit_(loss, inside.clone())]
        positive = _positive_logit_(loss, inside)
        if tile.same is not None:
            positive.masked_fill_(~tile.same, -math.inf)
            negative[0].masked_fill_(tile.same, -math.inf)
        positive[torch.arange(len(positive), device=cosine.device), tile.rows - tile.block.start] = -math.inf
        before, after = (_negative_logit_(loss, cosine[:, outside]) for outside in _around(tile.block))
        return positive, [before, *negative, after]


def _tiles(labels: Tensor, own: Tensor) -> Iterator[Tile]:
    """Cut this rank's rows, at the places `own` [n] of the sorted `labels` [N], into tiles."""
    _, class_of_row, class_size = labels.unique_consecutive(return_inverse=True, return_counts=True)
    class_end = class_size.cumsum(0)
    first, last = ((edge[class_of_row])[own].tolist() for edge in (class_end - class_size, class_end))
    elements = _CPU_TILE_ELEMENTS if labels.device.type == "cpu" else _GPU_TILE_ELEMENTS
    height = max(_MIN_TILE_ROWS, elements // max(1, len(labels)))
    start = 0
    for stop in _cuts(first, height):
        rows, block = own[start:stop], slice(first[start], last[stop - 1])
        one_label = first[start] == first[stop - 1]
        yield Tile(rows, block, None if one_label else labels[rows, None] == labels[block])
        start = stop


def _cuts(first: list[int], height: int) -> Iterator[int]:
    """Ends of the tiles over rows; `first` is where the label of each row begins.

    A label with many rows has its own tiles; labels with few rows share a tile.
    """
    start = 0  # of the current tile
    label_start = 0
    for end in range(1, len(first) + 1):
        if end < len(first) and first[end] == first[end - 1]:
            continue  # the label continues
        if end - label_start >= _MIN_TILE_ROWS:
            if start < label_start:
                yield label_start
            yield from range(label_start + height, end, height)
            yield end
            start = end
        elif end - start >= height or end == len(first):
            yield end
            start = end
        label_start = end


def _around(block: slice) -> tuple[slice, slice]:
    return slice(0, block.start), slice(block.stop, None)


def _columns(coefficients: Coefficients, columns: slice) -> Coefficients:
    return Coefficients(*(numbers[columns] for numbers in coefficients))


def _positive_logit_(loss: Loss, cosine: Tensor) -> Tensor:
    if isinstance(loss, Circle):
        return _circle_logit(loss, cosine.neg_().add_(1 + loss.margin).clamp_(min=0))
    return cosine.neg_() if isinstance(loss, Triplet) else cosine.div_(loss.temperature)


def _negative_logit_(loss: Loss, cosine: Tensor) -> Tensor:
    if isinstance(loss, Circle):
        return _circle_logit(loss, cosine.add_(loss.margin).clamp_(min=0))
    return cosine if isinstance(loss, Triplet) else cosine.div_(loss.temperature)


def _circle_logit(loss: Circle, weight: Tensor) -> Tensor:
    return (weight - 2 * loss.margin).mul_(weight).mul_(loss.scale)


def _statistics(loss: Loss, positive: Tensor, negative: list[Tensor]) -> tuple[Tensor, ...]:
    """The statistics [C] that `loss.reduce` asks for, from logits that are −∞ where there is no pair."""
    bound = torch.stack([part.logsumexp(dim=1) for part in negative]).logsumexp(dim=0)
    if isinstance(loss, Circle):
        return positive.logsumexp(dim=1), bound
    if isinstance(loss, InfoNCE):
        return (bound,)  # the given positive is handled outside of the tiles
    missing = positive == -math.inf
    count = (~missing).sum(dim=1).to(positive.dtype)
    if isinstance(loss, SupCon):
        return positive.logsumexp(dim=1), bound, positive.masked_fill_(missing, 0).sum(dim=1), count
    assert isinstance(loss, NTXent)
    distance = (bound[:, None] - positive).masked_fill_(missing, -math.inf)  # adds 0 to both sums
    return bound, F.softplus(distance).sum(dim=1), distance.sigmoid_().sum(dim=1), count


def _hardest(positive: Tensor, negative: list[Tensor], tile: Tile, num_rows: int) -> tuple[Tensor, Tensor]:
    """The largest logits [2, C] of either kind, and the places of their columns in the sorted batch.

    Where there is no pair the logit is −∞ and the place any.
    """
    places = torch.arange(num_rows + 1, device=positive.device)  # one extra for rows without a negative
    between = [] if tile.same is None else [places[tile.block]]
    negative_places = torch.cat([places[: tile.block.start], *between, places[tile.block.stop :]]) % num_rows
    farthest, in_block = positive.max(dim=1)
    nearest, column = F.pad(torch.cat(negative, dim=1), (0, 1), value=-math.inf).max(dim=1)
    return torch.stack([farthest, nearest]), torch.stack([in_block + tile.block.start, negative_places[column]])


def _pull_positive_(loss: Loss, cosine: Tensor, row: Coefficients, column: Coefficients) -> None:
    """Turn the cosines of positive pairs into what they add to ∂L/∂s, with either row as the anchor."""
    if isinstance(loss, Circle):
        weight = cosine.neg_().add_(1 + loss.margin).clamp_(min=0)
        weight.mul_(_two_weights_(_circle_logit(loss, weight), row.positive, column.positive)).neg_()
    elif isinstance(loss, SupCon):
        _two_weights_(cosine.div_(loss.temperature), row.positive, column.positive)
        cosine.add_(row.constant).add_(column.constant)
    elif isinstance(loss, NTXent):
        cosine.div_(loss.temperature)
        as_row = (row.positive - cosine).sigmoid_().mul_(row.constant)
        cosine.sub_(column.positive).neg_().sigmoid_().mul_(column.constant).add_(as_row)
    else:
        cosine.zero_()


def _pull_negative_(loss: Loss, cosine: Tensor, row: Coefficients, column: Coefficients) -> None:
    """Turn the cosines of negative pairs into what they add to ∂L/∂s, with either row as the anchor."""
    if isinstance(loss, Circle):
        weight = cosine.add_(loss.margin).clamp_(min=0)
        weight.mul_(_two_weights_(_circle_logit(loss, weight), row.negative, column.negative))
    else:
        assert not isinstance(loss, Triplet)  # toward() returns before: all its pairs are chosen ones
        _two_weights_(cosine.div_(loss.temperature), row.negative, column.negative)


def _two_weights_(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Write exp(x − row) + exp(x − column) into the logits x: a pair counts for both of its rows."""
    as_row = (x - row).exp_()
    return x.sub_(column).exp_().add_(as_row)
