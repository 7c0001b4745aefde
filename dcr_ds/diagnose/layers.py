"""Layer probe: how well the hidden states of each layer separate two sets of prompts, and the layer for stage 1.

Legend: L blocks, n prompts, T tokens, D width. Layer ℓ is the output of block ℓ, 1 ≤ ℓ < L, before any final norm; it
is at index ℓ − 1 of a tensor over layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from dcr_kernels import pool
from transformers import PreTrainedModel

from dcr_ds.diagnose.probe import NUM_FOLDS, held_out_scores, standardised_gram
from dcr_ds.discernment.couples import AucInterval, auc_interval, class_mean_interval, pair_folds
from dcr_ds.errors import UserError
from dcr_ds.models.batches import num_shared_tokens, pad_right
from dcr_ds.models.hooks.states import hidden_of

FEWEST_PROMPTS = 2 * NUM_FOLDS  # of each label: two in every fold
FEWEST_BLOCKS = 2
SHALLOWEST, DEEPEST = 0.4, 0.85  # bounds of the chosen layer, as shares of the blocks
WITHOUT_SEPARATION = 0.8  # share of the blocks if no layer separates the sets

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class LayerFigures:
    """How layer ℓ separates the sets.

    Attributes:
        class_mean_auc: held-out AUC of the direction between the class means of unit vectors, as stage 1 measures it.
        probe_auc: held-out AUC of a logistic regression, cross-validated over pairs.
        fisher: squared distance of the class means of unit vectors over their mean squared distance to them.
        within, across: mean cosine of two prompts of one set (mean of both sets), and of different sets.
        drift: mean over the prompts of ‖h − h₀‖ / ‖h₀‖ against the states of another model, or None.
    """

    layer: int
    class_mean_auc: AucInterval
    probe_auc: AucInterval
    fisher: float
    within: float
    across: float
    drift: float | None = None


@torch.no_grad()
def hidden_by_layer(
    model: PreTrainedModel, prompts: Sequence[list[int]], pooling: Pooling = "last", batch_size: int = 16
) -> torch.Tensor:
    """Pooled hidden states [L − 1, n, D] of prompts at layers 1 to L − 1, in float32 on the CPU.

    Each block's output is pooled immediately, so that states per token are kept for one block only.

    Args:
        model: a causal LM of transformers or its base model; it is left in eval mode.
        prompts: token ids.
        pooling: "last" token, or "mean" over the tokens after those that are the same in all prompts.
        batch_size: prompts per forward pass, padded to the longest of them.

    Raises:
        UserError: the model has a single block.
    """
    base: Any = model.base_model.eval()
    if len(base.layers) < FEWEST_BLOCKS:
        raise UserError(f"layer probe: the model has {len(base.layers)} block, and layers lie between two blocks")
    shared = num_shared_tokens(prompts) if pooling == "mean" else 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding
    result = torch.empty(len(base.layers) - 1, len(prompts), base.config.hidden_size)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        tokens, mask = pad_right([prompts[index] for index in indices], 0, base.device)
        pooled_tokens = mask.clone()
        pooled_tokens[:, :shared] = 0
        states = _pooled_outputs(base, {"input_ids": tokens, "attention_mask": mask}, pooling, pooled_tokens)
        result[:, indices] = states.float().cpu()
    return result


def _pooled_outputs(base, inputs: dict[str, torch.Tensor], pooling: Pooling, mask: torch.Tensor) -> torch.Tensor:
    """Pooled outputs [L − 1, B, D] of all blocks but the last."""
    states: list[torch.Tensor] = []

    def keep(_block, _inputs, output) -> None:
        states.append(pool(hidden_of(output), pooling, mask=mask)[0])

    hooks = [block.register_forward_hook(keep) for block in base.layers[:-1]]
    try:
        base(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states)


def probe_layers(
    hidden: torch.Tensor, labels: np.ndarray, pairs: np.ndarray, refined: torch.Tensor | None = None
) -> list[LayerFigures]:
    """Figures of each layer.

    Args:
        hidden: [L − 1, n, D] of `hidden_by_layer`; the figures describe these.
        labels: [n], 0 seemingly toxic, 1 toxic.
        pairs: [n] integers; twins share one, and are never parted by the cross-validation.
        refined: states of the same prompts by another model, for the drift from `hidden` to them.

    Raises:
        UserError: too few prompts of a set, or states that are not finite.
    """
    refuse_few_prompts(labels, pairs)
    if not hidden.isfinite().all():
        layer = 1 + int((~hidden.isfinite()).flatten(1).any(1).nonzero()[0])
        raise UserError(f"layer probe: hidden states of layer {layer} are not finite; load the model in float32")
    folds = pair_folds(labels, pairs, NUM_FOLDS)
    figures = []
    for index, states in enumerate(hidden):
        drift = None if refined is None else mean_drift(states, refined[index])
        figures.append(_figures(index + 1, states.numpy(), labels, pairs, folds, drift))
    return figures


def refuse_few_prompts(labels: np.ndarray, pairs: np.ndarray) -> None:
    """Raise UserError if a set has too few prompts, or too few pairs, for the folds of the cross-validation."""
    for label, name in enumerate(("seemingly toxic", "toxic")):
        if (count := int(np.sum(labels == label))) < FEWEST_PROMPTS:
            raise UserError(
                f"layer probe: {count} {name} prompts; {NUM_FOLDS} folds need at least {FEWEST_PROMPTS} of each set"
            )
        if (count := len(np.unique(pairs[labels == label]))) < NUM_FOLDS:
            raise UserError(
                f"layer probe: the {name} prompts belong to {count} pair{'s' * (count > 1)}, and a pair stays in one "
                f"fold; {NUM_FOLDS} folds need as many pairs"
            )


def choose_layer(figures: Sequence[LayerFigures], num_blocks: int) -> tuple[int, str]:
    """The layer for stage 1 and the reason, as text for the log.

    The smallest layer between 0.4·L and 0.85·L whose held-out AUC of the class means is within one standard error of
    the best one there. The AUC of the class means and not that of the logistic regression decides, as the contrastive
    loss works on the same geometry: cosines to the members of each set. Shallow layers have little meaning to separate,
    and few blocks to do it; behind the deepest ones too few blocks are left to read the refined states. Of equally good
    layers the smallest is the cheapest to train and leaves the most blocks unchanged. If even the best AUC is not above
    chance, the layer is 0.8·L.
    """
    low, high = math.ceil(SHALLOWEST * num_blocks), math.floor(DEEPEST * num_blocks)
    candidates = [row for row in figures if low <= row.layer <= high]
    best = max(candidates, key=lambda row: row.class_mean_auc.value)
    where = f"layers {low} to {high}"
    if not best.class_mean_auc.low > 0.5:
        layer = min(high, round(WITHOUT_SEPARATION * num_blocks))
        return layer, f"{WITHOUT_SEPARATION} of {num_blocks} blocks, as the class means of none of {where} separate"
    bar = best.class_mean_auc.value - best.class_mean_auc.error
    chosen = next(row for row in candidates if row.class_mean_auc.value >= bar)
    return chosen.layer, (
        f"held-out AUC {chosen.class_mean_auc.value:.3f} of the class means; the best of {where} is "
        f"{best.class_mean_auc.value:.3f} at layer {best.layer}, standard error {best.class_mean_auc.error:.3f}"
    )


def _figures(layer: int, states: np.ndarray, labels, pairs, folds, drift: float | None) -> LayerFigures:
    scores = held_out_scores(standardised_gram(states), labels, folds)
    unit = states.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    sets = [unit[labels == label] for label in (0, 1)]
    means = [rows.mean(axis=0) for rows in sets]
    spread = np.mean([rows.var(axis=0).sum() for rows in sets])
    return LayerFigures(
        layer=layer,
        class_mean_auc=class_mean_interval(states, labels, pairs),
        probe_auc=auc_interval(scores, labels, pairs, folds),
        fisher=float(np.sum((means[1] - means[0]) ** 2) / max(spread, 1e-12)),
        within=float(np.mean([_mean_cosine(rows) for rows in sets])),
        across=float(means[0] @ means[1]),
        drift=drift,
    )


def _mean_cosine(unit: np.ndarray) -> float:
    """Mean over couples of different rows: ‖Σu‖² counts each couple twice, and each row with itself."""
    count = len(unit)
    return float((np.sum(unit.sum(axis=0) ** 2) - np.sum(unit**2)) / (count * (count - 1)))


def mean_drift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean of ‖after − before‖ / ‖before‖ over the prompts, for states [n, D] of one layer."""
    return float(((after - before).norm(dim=1) / before.norm(dim=1)).mean())
