"""The launches of the Triton kernels. Importing this imports triton.

Shapes: N rows of all ranks, n of this rank, D width, S statistics.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .distributed import Batch
from .losses import Coefficients, Loss, NTXent, Triplet

# Weights of pairs that wait for their matrix product: this much stays in the L2 of a large GPU (H200: 60 MB).
_WEIGHT_BYTES = 32 * 2**20
# With few rows launch time dominates: one kernel without a library product beats two launches per chunk.
_TOWARD_KERNEL_ROWS = 512
_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200


class Blocks(NamedTuple):
    """Sizes of a tile (rows, columns, step in D) and the launch options that go with them."""

    m: int
    n: int
    d: int
    num_warps: int
    num_stages: int


def blocks_for(dtype: torch.dtype, num_rows: int) -> Blocks:
    """A table instead of an autotuner, which would stall the first step, and has nothing to time on a CPU."""
    if dtype == torch.float32:
        return Blocks(64, 64, 32, 4, 3)
    return Blocks(128, 128, 64, 8, 3) if num_rows > 2048 else Blocks(64, 64, 64, 4, 4)


class TritonPairs:
    """The pairs of a batch, recomputed tile by tile on the device. No call synchronises with the host."""

    def __init__(self, batch: Batch, inverse_length: Tensor, blocks: Blocks | None = None, splits: int | None = None):
        # A dead row may hold anything, and 0 · NaN in a matrix product would reach the others.
        self.h = batch.h.masked_fill((batch.labels < 0)[:, None], 0).contiguous()
        self.labels = batch.labels.contiguous()
        self.inverse_length = inverse_length.contiguous()
        self.first = batch.own.start
        self.num_own = batch.own.stop - batch.own.start
        self.num_rows, self.width = self.h.shape
        self.blocks = blocks or blocks_for(self.h.dtype, self.num_rows)
        self.splits = splits
        self.interpreted = self.h.device.type == "cpu"

    def statistics(self, loss: Loss) -> tuple[Tensor, Tensor | None]:
        """The statistics [S, n] of this rank's rows and, for batch-hard triplets, the rows [2, n] they are from."""
        if isinstance(loss, NTXent):
            bound, _ = self._row_statistics(loss, "ntxent", 1)
            bound = bound.logsumexp(dim=0)
            terms, _ = self._row_statistics(loss, "ntxent_terms", 3, bound)
            return torch.cat([bound, terms.sum(dim=0)]), None
        statistics, chosen = self._row_statistics(loss, loss.kind, loss.num_statistics)
        if isinstance(loss, Triplet):
            hardest, split = statistics.max(dim=0)
            return hardest, chosen.gather(0, split[None]).squeeze(0)
        bounds = statistics[:, : loss.num_bounds].logsumexp(dim=0)
        return torch.cat([bounds, statistics[:, loss.num_bounds :].sum(dim=0)]), None

    def toward(self, loss: Loss, coefficients: Coefficients | None) -> Tensor:
        """∂L/∂e [n, D] of this rank's unit rows, from the pairs of all rows; 0 of a loss that chooses its pairs."""
        if coefficients is None:
            return self.h.new_zeros(self.num_own, self.width, dtype=torch.float32)
        result = self.h.new_empty(self.num_own, self.width, dtype=torch.float32)
        coefficients = Coefficients(*(numbers.contiguous() for numbers in coefficients))
        if self.num_rows <= _TOWARD_KERNEL_ROWS:
            self._launch_pairs(kernels.toward_kernel, (1,), loss, coefficients, result, 0, self.num_own)
            return result
        # bfloat16 weights go with bfloat16 rows; float16 would lose small weights, so it is done in float32
        rows = self.h if self.h.dtype == torch.bfloat16 else self.h.float()
        height = max(self.blocks.m, _WEIGHT_BYTES // (rows.element_size() * self.num_rows))
        for start in range(0, self.num_own, height):
            stop = min(start + height, self.num_own)
            weights = rows.new_empty(stop - start, self.num_rows)
            grid = (triton.cdiv(self.num_rows, self.blocks.n),)
            self._launch_pairs(kernels.pull_kernel, grid, loss, coefficients, weights, start, stop - start)
            result[start:stop] = _product(weights, rows)
        return result

    def through_length(self, toward: Tensor, inverse_length: Tensor, factor: float) -> Tensor:
        """factor · ∂L/∂h [n, D] from ∂L/∂e, which it overwrites."""
        own = slice(self.first, self.first + self.num_own)
        kernels.through_length_kernel[(self.num_own,)](
            toward,
            self.h[own],
            self.inverse_length[own],
            self.labels[own],
            float(factor),
            D=self.width,
            BD=triton.next_power_of_2(self.width),
        )
        return toward

    def _row_statistics(
        self, loss: Loss, kind: str, num_statistics: int, bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Partial statistics [splits, S, n], and the rows [splits, 2, n] of a triplet's."""
        blocks = self.blocks
        row_blocks, column_blocks = triton.cdiv(self.num_own, blocks.m), triton.cdiv(self.num_rows, blocks.n)
        num_splits = self.splits or (1 if self.interpreted else triton.cdiv(_PROGRAMS, row_blocks))
        columns_per_split = triton.cdiv(column_blocks, min(num_splits, column_blocks)) * blocks.n
        splits = triton.cdiv(self.num_rows, columns_per_split)
        partial = self.h.new_empty(splits, num_statistics, self.num_own, dtype=torch.float32)
        chosen = self.labels.new_empty(splits, 2, self.num_own if kind == "triplet" else 0)
        kernels.statistics_kernel[(row_blocks, splits)](
            self.h,
            self.inverse_length,
            self.labels,
            partial if bound is None else bound,
            partial,
            chosen,
            self.first,
            self.num_own,
            self.num_rows,
            columns_per_split,
            *_slope(loss),
            KIND=kind,
            S=num_statistics,
            **self._options(),
        )
        return partial, chosen

    def _launch_pairs(self, kernel, columns: tuple, loss: Loss, coefficients, out: Tensor, start: int, rows: int):
        kernel[(triton.cdiv(rows, self.blocks.m), *columns)](
            self.h,
            self.inverse_length,
            self.labels,
            *coefficients,
            out,
            self.first + start,
            rows,
            self.num_rows,
            *_slope(loss),
            KIND=loss.kind,
            **self._options(),
        )

    def _options(self) -> dict:
        return {
            "D": self.width,
            "BM": self.blocks.m,
            "BN": self.blocks.n,
            "BD": self.blocks.d,
            "UPCAST": self.interpreted,
            # as for float32 products of torch: exact unless the user allows TF32
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            "num_warps": self.blocks.num_warps,
            "num_stages": self.blocks.num_stages,
        }


def _slope(loss: Loss) -> tuple[float, float]:
    """Margin, and γ or 1/τ in units of log₂ e."""
    slope = getattr(loss, "scale", None) or 1 / getattr(loss, "temperature", 1.0)
    return float(getattr(loss, "margin", 0.0)), slope * math.log2(math.e)


def _product(weights: Tensor, rows: Tensor) -> Tensor:
    """weights @ rows in float32, whatever the dtype of the factors."""
    if weights.dtype == torch.float32:
        return weights @ rows
    if weights.device.type == "cpu":
        return weights.float() @ rows.float()
    return torch.mm(weights, rows, out_dtype=torch.float32)
