"""Means of the eNTK per pair of categories, their intervals, and the files of a result."""

import csv
import io
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dcr_ds.diagnose.entk.layout import BLOCKS
from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically, write_json

RESAMPLES = 10_000


@dataclass(frozen=True)
class EntkResult:
    """Kernel norms of all pairs of N prompts, and their means per pair of C categories.

    Prompts are in the order of the categories. Rows are x', columns x.
    """

    counts: dict[str, int]  # prompts per category
    norms: np.ndarray  # [N, N] ‖K(x', x)‖_F
    ratios: np.ndarray  # [N, N] ‖K(x', x)‖_F / ‖K(x', x')‖_F
    means: np.ndarray  # [C, C] mean ratio; within a category without the pairs (x, x)
    low: np.ndarray  # [C, C] bounds of the 95 % bootstrap interval
    high: np.ndarray
    k: int
    parameters: str  # selection
    parameter_count: int
    tokens: np.ndarray  # [N, k] tokens whose logits were used

    @property
    def layer(self) -> int | None:
        """N of a selection blocks<=N or blocks>N."""
        match = BLOCKS.fullmatch(self.parameters.replace(" ", ""))
        return int(match[2]) if match else None


def make_result(norms: np.ndarray, counts: dict[str, int]) -> dict[str, Any]:
    """Ratios, means and intervals from kernel norms [N, N]; N is the sum of the counts per category."""
    ratios = normalise(norms, counts)
    low, high = bootstrap(ratios, counts)
    means = block_means(np.ones((1, len(ratios))), ratios, counts)[0]
    return {"counts": counts, "norms": norms, "ratios": ratios, "means": means, "low": low, "high": high}


def normalise(norms: np.ndarray, counts: dict[str, int]) -> np.ndarray:
    """Divide every row by its diagonal entry."""
    own = np.diagonal(norms)
    if (zero := np.flatnonzero(~(own > 0))).size:
        category = str(np.repeat(list(counts), list(counts.values()))[zero[0]])
        raise UserError(
            f"eNTK: for {zero.size} prompts, the first of category {category!r}, all gradients of the selected "
            "parameters are zero; select parameters that the logits depend on (LoRA's A has none while B is zero)"
        )
    return norms / own[:, None]


def block_means(weights: np.ndarray, ratios: np.ndarray, counts: dict[str, int]) -> np.ndarray:
    """Mean ratio per pair of categories, for prompts that occur several times or not at all: [R, C, C].

    Pairs of a prompt with itself do not count; without any other pair the mean is NaN.

    Args:
        weights: [R, N] how often each prompt occurs.
    """
    bounds = np.cumsum([0, *counts.values()])
    slices = [slice(start, end) for start, end in zip(bounds, bounds[1:], strict=False)]
    different = 1 - np.eye(len(ratios))
    means = np.empty((len(weights), len(slices), len(slices)))
    for row, rows in enumerate(slices):
        for column, columns in enumerate(slices):
            left, right = weights[:, rows], weights[:, columns]
            counted = different[rows, columns]
            total = ((left @ (ratios[rows, columns] * counted)) * right).sum(axis=1)
            pairs = ((left @ counted) * right).sum(axis=1)
            means[:, row, column] = np.divide(total, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return means


def bootstrap(ratios: np.ndarray, counts: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals at 95 % of the block means, by resampling the prompts within every category.

    They are too narrow for few prompts: two prompts have one pair within their category, so no spread.
    """
    low, high = np.nanquantile(block_means(resamples(counts), ratios, counts), [0.025, 0.975], axis=0)
    return low, high


def difference(first: EntkResult, second: EntkResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block means [C, C] of `second` minus those of `first`, and their 95 % intervals.

    The prompts of both are the same and are resampled together, so that variation between prompts cancels.
    """
    if first.counts != second.counts:
        raise UserError("eNTK: two results can only be compared if they are of the same prompts")
    weights = resamples(first.counts)
    before, after = (block_means(weights, result.ratios, first.counts) for result in (first, second))
    low, high = np.nanquantile(after - before, [0.025, 0.975], axis=0)
    return second.means - first.means, low, high


def symmetric(result: EntkResult) -> EntkResult:
    """The same kernel with ratios ‖K(x', x)‖ / √(‖K(x', x')‖ ‖K(x, x)‖), which do not depend on the size of gradients.

    Rows of ‖K(x', x)‖ / ‖K(x', x')‖ fall where the gradients of x' grow, whatever becomes of their directions.
    """
    ratios = np.sqrt(result.ratios * result.ratios.T)
    low, high = bootstrap(ratios, result.counts)
    means = block_means(np.ones((1, len(ratios))), ratios, result.counts)[0]
    return replace(result, ratios=ratios, means=means, low=low, high=high)


def resamples(counts: dict[str, int]) -> np.ndarray:
    """How often each prompt occurs in each resample [R, N]; every category keeps its number of prompts."""
    random = np.random.default_rng(0)
    drawn = [random.multinomial(count, [1 / count] * count, size=RESAMPLES) for count in counts.values()]
    return np.concatenate(drawn, axis=1).astype(float)


def write_entk(result: EntkResult, folder: Path) -> None:
    """Write entk.json (block means), entk.csv (all pairs) and, where matplotlib is installed, entk.png."""
    names, of_angle = list(result.counts), symmetric(result)
    blocks = [
        {
            "row": row,
            "column": column,
            "mean": float(result.means[i, j]),
            "low": float(result.low[i, j]),
            "high": float(result.high[i, j]),
            "symmetric_mean": float(of_angle.means[i, j]),
        }
        for i, row in enumerate(names)
        for j, column in enumerate(names)
    ]
    facts = {
        "k": result.k,
        "parameters": result.parameters,
        "parameter_count": result.parameter_count,
        "layer": result.layer,
        "n": result.counts,
        "confidence": 0.95,
        "resamples": RESAMPLES,
        "blocks": blocks,
    }
    write_json(folder / "entk.json", facts)
    write_atomically(folder / "entk.csv", pairs_as_csv(result))
    if find_spec("matplotlib"):
        from dcr_ds.diagnose.entk.picture import draw

        draw(result, folder / "entk.png")


def pairs_as_csv(result: EntkResult) -> str:
    """One line per ordered pair of prompts, which are numbered from 1 within their category."""
    prompts = [(name, number) for name, count in result.counts.items() for number in range(1, count + 1)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row_category", "row", "column_category", "column", "norm", "ratio"])
    for i, row in enumerate(prompts):
        for j, column in enumerate(prompts):
            writer.writerow([*row, *column, f"{result.norms[i, j]:.9g}", f"{result.ratios[i, j]:.9g}"])
    return stream.getvalue()
