"""The definition of each loss: its options, and everything that needs per-row statistics instead of pairs.

Every backend works in the same way. It computes a few statistics per row over the row's partners; `reduce` turns the
statistics of all rows into the scalar; autograd gives ∂L/∂statistics; `coefficients` turns that into at most three
numbers per row, with which the backend recomputes the pairs for the gradient. Only per-row numbers are kept and sent
between ranks, never pairs.

Shapes: N rows of all ranks. P_i are the other rows with the label of row i, N_i the rows with another label, s_ij
the cosine of rows i and j and x_ij their logit. kernels/README.md has the formulas in one table.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Of scale and 1 / temperature. A cosine is rounded to 1e-7 in float32, and the gradient has the exponential of a logit:
# above, it is wrong by more than a tenth, and then overflows.
STEEPEST = 1e6


class Coefficients(NamedTuple):
    """What row i needs, as an anchor, for its part of ∂L/∂s_ij: each [N]; +∞ in a normaliser is a weight of 0.

             positive partner                         negative partner
    circle   −α exp(x − positive)                     α exp(x − negative)
    supcon   exp(x − positive) + constant             exp(x − negative)
    infonce  0 in a tile; the given one is separate    exp(x − negative)
    ntxent   constant · sigmoid(positive − x)         exp(x − negative)
    """

    positive: Tensor
    negative: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Circle:
    """Circle loss. With the gap g of a pair, 1 − s of a positive and s of a negative one, both kinds have the
    weight α = [g + m]₊ (a stop-gradient), the logit x = γ α (α − 2m), and ∂x/∂g = γ α.
    """

    margin: float = 0.25
    scale: float = 32.0
    form: str = "anchor"
    reduction: str = "valid"

    kind: ClassVar[str] = "circle"
    num_statistics: ClassVar[int] = 2
    num_bounds: ClassVar[int] = 2

    def __post_init__(self):
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be in [0, 1), got {self.margin}")
        if not 0 < self.scale <= STEEPEST:
            raise ValueError(f"scale must be above 0 and at most {STEEPEST:g}, got {self.scale}")
        _check_choice("form", self.form, ("anchor", "global"))
        _check_reduction(self.reduction)

    def reduce(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of anchors from A_i = log Σ_{P_i} exp x_ij and B_i = log Σ_{N_i} exp x_ij.

        form "anchor", each row in turn being the paper's single sample: L_i = softplus(A_i + B_i).

        form "global", one term over all unordered pairs of the batch, so that there is nothing to average. Every
        pair is seen from both of its ends, hence the ln 2: L = softplus((LSE_i A_i − ln 2) + (LSE_i B_i − ln 2)).
        """
        positive, negative = statistics
        if self.form == "anchor":
            both = positive + negative
            return _mean(F.softplus(both), both != -math.inf, self.reduction)
        both = log_sum_exp(positive) + log_sum_exp(negative)
        anchors = ((positive != -math.inf) & (both != -math.inf)).sum()
        return F.softplus(both - 2 * math.log(2)), anchors

    def coefficients(self, statistics: Tensor, share: Tensor) -> Coefficients:
        positive, negative = (
            _normaliser(statistic, gradient * self.scale) for statistic, gradient in zip(statistics, share, strict=True)
        )
        return Coefficients(positive, negative, torch.zeros_like(positive))


@dataclass(frozen=True)
class SupCon:
    """Supervised contrastive loss, the mean over positives outside of the logarithm (L_out). x = s / τ."""

    temperature: float = 0.1
    reduction: str = "valid"

    kind: ClassVar[str] = "supcon"
    num_statistics: ClassVar[int] = 4
    num_bounds: ClassVar[int] = 2

    def __post_init__(self):
        _check_temperature(self.temperature)
        _check_reduction(self.reduction)

    def reduce(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of anchors from A_i and B_i as in Circle, Q_i = Σ_{P_i} x_ij and k_i = |P_i|.

        L_i = log Σ_{j≠i} exp x_ij − Q_i / k_i, 0 where P_i or N_i is empty.
        """
        positive, negative, total, count = statistics
        valid = (positive != -math.inf) & (negative != -math.inf)
        everything = torch.logaddexp(positive.where(valid, 0), negative.where(valid, 0))
        return _mean((everything - total / count.clamp(min=1)).where(valid, 0), valid, self.reduction)

    def coefficients(self, statistics: Tensor, share: Tensor) -> Coefficients:
        slope = 1 / self.temperature
        positive, negative = (_normaliser(statistics[k], share[k] * slope) for k in (0, 1))
        return Coefficients(positive, negative, share[2] * slope)


@dataclass(frozen=True)
class InfoNCE:
    """InfoNCE with one given positive per row and the rows of other labels as negatives. x = s / τ."""

    temperature: float = 0.1
    reduction: str = "valid"

    kind: ClassVar[str] = "infonce"
    num_statistics: ClassVar[int] = 1
    num_bounds: ClassVar[int] = 1

    def __post_init__(self):
        _check_temperature(self.temperature)
        _check_reduction(self.reduction)

    def reduce(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of anchors from the positive logit x_i⁺ (+∞ where there is none) and B_i.

        L_i = softplus(B_i − x_i⁺), which is −log of the softmax of the positive among it and the negatives.
        """
        positive, negative = statistics
        valid = (positive != math.inf) & (negative != -math.inf)
        return _mean(F.softplus(negative - positive), valid, self.reduction)

    def coefficients(self, statistics: Tensor, share: Tensor) -> Coefficients:
        negative = _normaliser(statistics[1], share[1] / self.temperature)
        return Coefficients(torch.full_like(negative, math.inf), negative, torch.zeros_like(negative))

    def chosen(self, share: Tensor) -> Tensor:
        """∂L/∂s [1, N] of each row with its given positive."""
        return share[:1] / self.temperature


@dataclass(frozen=True)
class NTXent:
    """NT-Xent with labels: a term for every ordered positive pair, its negatives those of the anchor. x = s / τ."""

    temperature: float = 0.1

    kind: ClassVar[str] = "ntxent"
    num_statistics: ClassVar[int] = 4
    num_bounds: ClassVar[int] = 1

    def __post_init__(self):
        _check_temperature(self.temperature)

    def reduce(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of anchors from B_i, ℓ_i = Σ_{P_i} softplus(B_i − x_ij), U_i = ∂ℓ_i/∂B_i, k_i = |P_i|.

        L = Σ ℓ_i / Σ k_i, over the rows with a negative.
        """
        negative, terms, _, count = statistics
        valid = (count > 0) & (negative != -math.inf)
        pairs = count.where(valid, 0).sum()
        return terms.where(valid, 0).sum() / pairs.clamp(min=1), valid.sum()

    def coefficients(self, statistics: Tensor, share: Tensor) -> Coefficients:
        negative, _, slope, _ = statistics
        weight = share[1] / self.temperature
        return Coefficients(negative.detach(), _normaliser(negative, weight * slope.detach()), -weight)


@dataclass(frozen=True)
class Triplet:
    """Batch-hard triplet loss on cosines: each anchor with its farthest positive and its nearest negative."""

    margin: float = 0.2
    reduction: str = "valid"

    kind: ClassVar[str] = "triplet"
    num_statistics: ClassVar[int] = 2
    num_bounds: ClassVar[int] = 2

    def __post_init__(self):
        if not 0 <= self.margin <= 2:
            raise ValueError(f"margin must be in [0, 2], got {self.margin}")
        _check_reduction(self.reduction)

    def reduce(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of anchors from A_i = max_{P_i} (−s_ij) and B_i = max_{N_i} s_ij. L_i = [A_i + B_i + m]₊."""
        positive, negative = statistics
        both = positive + negative
        return _mean(F.relu(both + self.margin), both != -math.inf, self.reduction)

    def coefficients(self, statistics: Tensor, share: Tensor) -> None:
        """No pair but the chosen ones has a gradient."""

    def chosen(self, share: Tensor) -> Tensor:
        """∂L/∂s [2, N] of each row with its hardest positive and its hardest negative."""
        return torch.stack([-share[0], share[1]])


Loss = Circle | SupCon | InfoNCE | NTXent | Triplet


def _mean(loss: Tensor, valid: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Average the losses [N] of the anchors; return the average and the number of anchors.

    valid: over the rows with a positive and a negative partner. nonzero: over the rows of loss above 0, as
    pytorch-metric-learning's AvgNonZeroReducer does. The losses of rows that are not valid are 0.
    """
    counted = loss > 0 if reduction == "nonzero" else valid
    return loss.sum() / counted.sum().clamp(min=1), valid.sum()


def log_sum_exp(x: Tensor) -> Tensor:
    """Log-sum-exp of the last dimension: −∞ with a zero gradient, not NaN, where there is nothing to sum."""
    nothing = (x == -math.inf).all(dim=-1)
    return x.masked_fill(nothing[..., None], 0).logsumexp(dim=-1).masked_fill(nothing, -math.inf)


def _normaliser(statistic: Tensor, weight: Tensor) -> Tensor:
    """Z such that weight · exp(x − statistic) = exp(x − Z): one exponential, and no ∞ − ∞.

    A weight of 0 (that of an empty set among them, whose statistic is −∞) becomes exp(−∞); the comparison lets a
    NaN through.
    """
    return torch.where(weight == 0, math.inf, statistic.detach() - weight.log())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_reduction(value: str) -> None:
    _check_choice("reduction", value, ("valid", "nonzero"))


def _check_temperature(value: float) -> None:
    if not 1 / STEEPEST <= value < math.inf:
        raise ValueError(f"temperature must be at least {1 / STEEPEST:g} and finite, got {value}")
